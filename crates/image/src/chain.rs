//! How much an image may lean on older files.
//!
//! A file that only a part of is still needed takes all of its room. So for every image, the files that it needs (itself and
//! its bases) may together be a fifth longer than what of them it uses; where they would be, contents of the worst of them are
//! carried over into the new image until they are not. With two images kept, all files together are then at most
//! 1.2 + 1 times one full image: what the older one needs, and the newer one's own file.

/// A file that an image takes contents from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    /// How long the file is.
    pub len: u64,
    /// How much of it the image uses.
    pub live: u64,
}

/// The most bases of one image: each is a file to be opened.
pub(crate) const MOST_BASES: usize = 64;
/// The room that files may take, over what of them is used.
const BOUND: (u64, u64) = (6, 5);

/// Whether files of `len` bytes in all are too much for `live` bytes that are used.
fn is_too_much(len: u64, live: u64) -> bool {
    len.saturating_mul(BOUND.1) > live.saturating_mul(BOUND.0)
}

/// Which of `bases` a new image must do without, when its own file has `own` bytes.
pub(crate) fn unbearable(own: u64, bases: &[Use]) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..bases.len()).filter(|n| bases[*n].live > 0).collect();
    let mut dropped: Vec<usize> = (0..bases.len()).filter(|n| bases[*n].live == 0).collect();
    let mut own = own;
    loop {
        let len = own + kept.iter().map(|n| bases[*n].len).sum::<u64>();
        let live = own + kept.iter().map(|n| bases[*n].live).sum::<u64>();
        if kept.len() <= MOST_BASES && !is_too_much(len, live) {
            break;
        }
        // The most room won for each byte that has to be copied.
        let gain = |n: usize| {
            let Use { len, live } = bases[n];
            u128::from(len.saturating_sub(live)) * (1 << 32) / u128::from(live.max(1))
        };
        let Some(worst) = (0..kept.len()).max_by_key(|at| gain(kept[*at])) else {
            break;
        };
        let worst = kept.swap_remove(worst);
        own += bases[worst].live;
        dropped.push(worst);
    }
    dropped
}

/// Whether an image that takes contents from `files`, and adds about as much as the last one (`added`), would have to carry
/// over most of them: then it is better written from memory, in full.
pub(crate) fn is_worn(added: u64, files: &[Use]) -> bool {
    let len = files.iter().map(|file| file.len).sum::<u64>() + added;
    // What is added replaces what was used before.
    let live = files.iter().map(|file| file.live).sum::<u64>();
    files.len() > MOST_BASES || is_too_much(len, live)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(len: u64, live: u64) -> Use {
        Use { len, live }
    }

    #[test]
    fn what_is_used_almost_whole_may_stay() {
        assert!(unbearable(10, &[file(1000, 990)]).is_empty());
        assert!(unbearable(0, &[]).is_empty());
        assert!(!is_worn(10, &[file(1000, 990)]));
    }

    #[test]
    fn the_worst_goes_first_and_what_is_not_used_always() {
        assert_eq!(unbearable(500, &[file(1000, 100), file(400, 390)]), [0]);
        assert_eq!(unbearable(10, &[file(1000, 1000), file(5, 0)]), [1]);
        assert!(is_worn(150, &[file(1000, 900), file(100, 100)]));
    }

    #[test]
    fn there_are_never_too_many() {
        let many = vec![file(10, 10); MOST_BASES + 3];
        assert_eq!(unbearable(0, &many).len(), 3);
        assert!(is_worn(0, &many));
    }

    /// A working set of which each step replaces a part: all files of the newest two images stay within 2.2 times its size.
    #[test]
    fn room_is_bounded_for_ever() {
        const S: u64 = 100_000;
        for part in [1, 7, 10, 19, 45, 60, 99, 100] {
            // The live bytes of each file, oldest first, for the newest image; lengths; the files of the image before.
            let mut files: Vec<Use> = Vec::new();
            for step in 0..400 {
                let before: u64 = files.iter().map(|file| file.len).sum();
                let last = files.last().map_or(0, |file| file.len);
                let added = if files.len() > 1 { last } else { 0 };
                let mut own = S;
                if !files.is_empty() && !is_worn(added, &files) {
                    // Every file loses the same share, as if pages were hit at random.
                    for file in &mut files {
                        file.live -= file.live * part / 100;
                    }
                    let live: u64 = files.iter().map(|file| file.live).sum();
                    own = S - live;
                    for n in unbearable(own, &files) {
                        own += files[n].live;
                        files[n].live = 0;
                    }
                    files.retain(|file| file.live > 0);
                } else {
                    files.clear();
                }
                assert!(
                    before + own <= S * 22 / 10,
                    "{part} % in step {step}: {before} + {own}"
                );
                files.push(file(own, own));
            }
        }
    }
}
