//! What a restart makes of connections that led out of the job: the user's rules.

use super::inet::Address;
use std::net::IpAddr;
use std::str::FromStr;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// It is reset, as if the network had dropped it.
    #[default]
    Reset,
    /// The restart is refused.
    Refuse,
    /// It is made anew; what had been received and not read is lost. Where that fails it is reset.
    Reconnect,
}

/// A rule: what becomes of connections to some address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The address; `None` for every one.
    pub ip: Option<IpAddr>,
    /// The port; `None` for every one.
    pub port: Option<u16>,
    /// What becomes of them.
    pub way: Way,
}

/// All rules: of those that fit, the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External(pub Vec<Rule>);

impl External {
    /// What becomes of a connection to `remote`.
    #[must_use]
    pub fn way(&self, remote: &Address) -> Way {
        let fits = |rule: &&Rule| {
            rule.ip
                .is_none_or(|ip| ip.to_canonical() == remote.ip.to_canonical())
                && rule.port.is_none_or(|port| port == remote.port)
        };
        let last = self.0.iter().rev().find(fits);
        last.map_or(Way::default(), |rule| rule.way)
    }
}

impl FromStr for Rule {
    type Err = String;

    /// `WHAT`, `WHAT=ADDRESS`, `WHAT=ADDRESS:PORT` or `WHAT=*:PORT`, with an IPv6 address in brackets where a port follows.
    fn from_str(text: &str) -> Result<Rule, String> {
        let (what, place) = match text.split_once('=') {
            Some((what, place)) => (what, Some(place)),
            None => (text, None),
        };
        let way = match what {
            "reset" => Way::Reset,
            "refuse" => Way::Refuse,
            "reconnect" => Way::Reconnect,
            _ => return Err(format!("{what} is none of reset, refuse, reconnect")),
        };
        let wrong = || format!("{text} names no IP address and port, such as {what}=10.0.0.7:5432");
        let (ip, port) = match place {
            None | Some("*") => (None, None),
            Some(place) => match (place.parse::<IpAddr>(), place.rsplit_once(':')) {
                (Ok(ip), _) => (Some(ip), None),
                (Err(_), Some((ip, port))) => {
                    let ip = match ip.trim_start_matches('[').trim_end_matches(']') {
                        "*" => None,
                        ip => Some(ip.parse().map_err(|_| wrong())?),
                    };
                    (ip, Some(port.parse().map_err(|_| wrong())?))
                }
                (Err(_), None) => return Err(wrong()),
            },
        };
        Ok(Rule { ip, port, way })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().expect(text)
    }

    #[test]
    fn the_last_rule_that_fits_counts() {
        let texts = [
            "refuse",
            "reconnect=*:5432",
            "reset=10.0.0.7",
            "refuse=[::1]:80",
        ];
        let rules = External(texts.map(rule).into());
        let way = |ip: &str, port| {
            let ip = ip.parse().expect("an address");
            let scope = 0;
            rules.way(&Address { ip, port, scope })
        };
        assert_eq!(way("10.0.0.8", 22), Way::Refuse);
        assert_eq!(way("10.0.0.8", 5432), Way::Reconnect);
        assert_eq!(way("::ffff:10.0.0.7", 5432), Way::Reset);
        assert_eq!(way("::1", 80), Way::Refuse);
        assert_eq!(
            External::default().way(&Address {
                ip: IpAddr::from([1, 2, 3, 4]),
                port: 1,
                scope: 0
            }),
            Way::Reset
        );
    }

    #[test]
    fn what_is_no_rule() {
        for bad in [
            "",
            "keep",
            "reset=",
            "reset=host",
            "reset=1.2.3.4:x",
            "refuse=[::1]x",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }
}
