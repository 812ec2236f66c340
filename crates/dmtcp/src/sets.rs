//! Which of some images belong together: the newest complete set.
//!
//! Images of one computation know how many they were and which checkpoint they are of. A pattern such as `ckpt_*.dmtcp` may
//! find images of several checkpoints and computations: those of programs that had ended before the last one, those that an
//! older job has left, those that were lost on the way.

use stasis_engine::checkpoint::JobInfo;
use stasis_engine::model::Tree;
use stasis_image::Image;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An image that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself.
    pub info: JobInfo,
}

impl Candidate {
    /// Looks at the image at `path`.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn open(path: &Path) -> Result<Candidate, String> {
        let path =
            std::fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let image = Image::open(&path).map_err(|error| error.to_string())?;
        let info = Tree::of(&image).map_err(|error| error.to_string())?.info;
        Ok(Candidate { path, info })
    }

    /// The set that it belongs to.
    fn set(&self) -> (String, u64) {
        match &self.info.computation {
            Some(computation) => (computation.id.clone(), computation.generation),
            None => (self.path.to_string_lossy().into_owned(), 0),
        }
    }

    fn members(&self) -> Vec<String> {
        match &self.info.computation {
            Some(computation) => computation.members.clone(),
            None => vec![self.info.name.clone()],
        }
    }
}

/// What is to be restarted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Together, the first as it was given.
    pub images: Vec<Candidate>,
    /// Names of those that belong to it and are not there.
    pub missing: Vec<String>,
    /// What was given besides, and why it is not taken.
    pub rest: Vec<(PathBuf, String)>,
}

/// The newest complete set among `given`. `unnamed` are images that were complete, but had not got their names yet: they are
/// taken where a set lacks them.
///
/// Without a complete set, the images of the only one that there is are taken, for who gives only some wants only some.
///
/// # Errors
/// When several sets are there and none is complete.
pub fn choose(given: Vec<Candidate>, unnamed: Vec<Candidate>) -> Result<Choice, String> {
    let order: Vec<PathBuf> = given.iter().map(|image| image.path.clone()).collect();
    let mut sets: BTreeMap<(String, u64), Vec<Candidate>> = BTreeMap::new();
    for image in given {
        let set = sets.entry(image.set()).or_default();
        // The same image by two names.
        if set.iter().all(|known| known.info.name != image.info.name) {
            set.push(image);
        }
    }
    for image in unnamed {
        if let Some(set) = sets.get_mut(&image.set())
            && set.iter().all(|known| known.info.name != image.info.name)
        {
            set.push(image);
        }
    }
    let missing = |set: &[Candidate]| -> Vec<String> {
        let there: BTreeSet<&str> = set.iter().map(|image| image.info.name.as_str()).collect();
        let wanted = set.first().map(Candidate::members).unwrap_or_default();
        wanted
            .into_iter()
            .filter(|name| !there.contains(name.as_str()))
            .collect()
    };
    let age = |set: &[Candidate]| {
        let newest = set.iter().map(|image| image.info.taken_at).max();
        let generation = set.first().map(|image| image.set().1);
        (newest, generation)
    };
    let complete = sets.values().filter(|set| missing(set).is_empty());
    let newest = complete.max_by_key(|set| age(set));
    let chosen = match newest.or_else(|| sets.values().next().filter(|_| sets.len() == 1)) {
        Some(chosen) => chosen.clone(),
        None if sets.is_empty() => return Err("there is no image".into()),
        None => {
            let lines: Vec<String> = sets
                .values()
                .map(|set| {
                    let there: Vec<String> = set
                        .iter()
                        .map(|image| image.path.display().to_string())
                        .collect();
                    format!("  {} without {}", there.join(", "), missing(set).join(", "))
                })
                .collect();
            return Err(format!(
                "the images are of several checkpoints, and no checkpoint is complete:\n{}\ngive the images of one of them, \
                 to restart these programs without the others",
                lines.join("\n")
            ));
        }
    };
    let place = |image: &Candidate| {
        order
            .iter()
            .position(|path| *path == image.path)
            .unwrap_or(usize::MAX)
    };
    let mut images = chosen;
    images.sort_by_key(place);
    let missing = missing(&images);
    let taken: BTreeSet<PathBuf> = images.iter().map(|image| image.path.clone()).collect();
    let rest = sets
        .into_values()
        .flatten()
        .filter(|image| !taken.contains(&image.path))
        .map(|image| {
            let why = if image.info.computation.as_ref().map(|c| &c.id)
                == images
                    .first()
                    .and_then(|first| first.info.computation.as_ref())
                    .map(|c| &c.id)
            {
                "of an older checkpoint"
            } else {
                "of another computation"
            };
            (image.path, why.to_owned())
        })
        .collect();
    Ok(Choice {
        images,
        missing,
        rest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use stasis_engine::checkpoint::Computation;

    fn image(
        path: &str,
        name: &str,
        id: &str,
        generation: u64,
        members: &[&str],
        taken_at: i64,
    ) -> Candidate {
        Candidate {
            path: path.into(),
            info: JobInfo {
                name: name.into(),
                sequence: generation,
                command: Vec::new(),
                taken_at,
                host: "h".into(),
                computation: (!id.is_empty()).then(|| Computation {
                    id: id.into(),
                    generation,
                    members: members.iter().map(|name| (*name).to_owned()).collect(),
                }),
            },
        }
    }

    fn paths(choice: &Choice) -> Vec<&str> {
        choice
            .images
            .iter()
            .map(|image| image.path.to_str().unwrap())
            .collect()
    }

    #[test]
    fn the_newest_complete_set_is_taken_and_the_rest_named() {
        let ab = &["a", "b"];
        let given = vec![
            image("b5", "b", "x", 5, ab, 50),
            image("c4", "c", "x", 4, &["a", "b", "c"], 40),
            image("a5", "a", "x", 5, ab, 50),
            image("old", "o", "w", 9, &["o"], 10),
        ];
        let choice = choose(given, Vec::new()).unwrap();
        assert_eq!(paths(&choice), ["b5", "a5"], "in the order given");
        assert_eq!(choice.missing, [""; 0]);
        let rest: Vec<_> = choice
            .rest
            .iter()
            .map(|(path, why)| (path.to_str().unwrap(), why.as_str()))
            .collect();
        assert_eq!(
            rest,
            [
                ("old", "of another computation"),
                ("c4", "of an older checkpoint")
            ]
        );
    }

    #[test]
    fn an_incomplete_newer_set_is_passed_over_or_completed() {
        let ab = &["a", "b"];
        let given = vec![
            image("a5", "a", "x", 5, ab, 50),
            image("a4", "a", "x", 4, ab, 40),
            image("b4", "b", "x", 4, ab, 40),
        ];
        assert_eq!(
            paths(&choose(given.clone(), Vec::new()).unwrap()),
            ["a4", "b4"]
        );
        let unnamed = vec![
            image("b5.temp", "b", "x", 5, ab, 50),
            image("z", "z", "y", 1, &["z"], 99),
        ];
        assert_eq!(paths(&choose(given, unnamed).unwrap()), ["a5", "b5.temp"]);
    }

    #[test]
    fn one_of_several_may_be_restarted_alone() {
        let choice = choose(vec![image("a5", "a", "x", 5, &["a", "b"], 50)], Vec::new()).unwrap();
        assert_eq!(paths(&choice), ["a5"]);
        assert_eq!(choice.missing, ["b"]);
        let alone = choose(vec![image("p", "p", "", 3, &[], 1)], Vec::new()).unwrap();
        assert_eq!(alone.missing, [""; 0]);
    }

    #[test]
    fn two_halves_are_no_whole() {
        let ab = &["a", "b"];
        let given = vec![
            image("a5", "a", "x", 5, ab, 50),
            image("b4", "b", "x", 4, ab, 40),
        ];
        let error = choose(given, Vec::new()).unwrap_err();
        assert!(
            error.contains("a5 without b") && error.contains("b4 without a"),
            "{error}"
        );
        assert!(choose(Vec::new(), Vec::new()).is_err());
    }
}
