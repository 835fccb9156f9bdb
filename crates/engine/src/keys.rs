//! `--detach-keys`: a comma-separated list of single characters and `ctrl-X`, as Docker's `term.ToBytes`.

/// ctrl-p, ctrl-q.
pub const DEFAULT: [u8; 2] = [0x10, 0x11];

/// Reads a sequence; the empty one means the default.
pub fn parse(s: &str) -> Result<Vec<u8>, String> {
    if s.is_empty() {
        return Ok(DEFAULT.to_vec());
    }
    s.split(',').map(key).collect::<Option<Vec<u8>>>().ok_or_else(|| {
        format!("invalid detach keys {s:?}: give single characters or ctrl-<character>, joined by commas")
    })
}

fn key(word: &str) -> Option<u8> {
    if let [one] = word.as_bytes() {
        return Some(*one);
    }
    let name = word.get(..5).filter(|p| p.eq_ignore_ascii_case("ctrl-")).map(|_| &word[5..])?;
    let [c] = name.as_bytes() else { return None };
    match c.to_ascii_lowercase() {
        c @ b'a'..=b'z' => Some(c - b'a' + 1),
        b'@' => Some(0),
        b'[' => Some(27),
        b'\\' => Some(28),
        b']' => Some(29),
        b'^' => Some(30),
        b'_' => Some(31),
        _ => None,
    }
}

/// Finds the sequence in what is typed. Keys that begin it are held back until it is clear that they do not.
#[derive(Clone, Debug)]
pub struct Watcher {
    keys: Vec<u8>,
    matched: usize,
}

impl Watcher {
    /// Watches for `keys`.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Appends to `out` what is to be sent on of `input`; true when the sequence is complete.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for &b in input {
            loop {
                if self.keys.get(self.matched) == Some(&b) {
                    self.matched += 1;
                    if self.matched == self.keys.len() {
                        self.matched = 0;
                        return true;
                    }
                    break;
                }
                if self.matched == 0 {
                    out.push(b);
                    break;
                }
                // Let go of the shortest prefix that leaves a possible beginning.
                let shift = (1..=self.matched)
                    .find(|n| self.keys[*n..self.matched] == self.keys[..self.matched - n])
                    .unwrap_or(self.matched);
                out.extend_from_slice(&self.keys[..shift]);
                self.matched -= shift;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sequences() {
        assert_eq!(parse("").unwrap(), DEFAULT);
        assert_eq!(parse("ctrl-p,ctrl-q").unwrap(), DEFAULT);
        assert_eq!(parse("ctrl-@,a,CTRL-[").unwrap(), [0, b'a', 27]);
        for bad in ["ctrl-", "ctrl-1", "ab", "a,", "ctrl-é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_broken_sequence_is_passed_on() {
        let mut w = Watcher::new(b"aab".to_vec());
        let mut out = Vec::new();
        assert!(!w.feed(b"xaa", &mut out));
        assert_eq!(out, b"x");
        assert!(w.feed(b"ab", &mut out));
        assert_eq!(out, b"xa");
    }

    proptest! {
        #[test]
        fn nothing_is_lost(keys in proptest::collection::vec(0u8..3, 1..4), input in proptest::collection::vec(0u8..3, 0..40)) {
            let mut w = Watcher::new(keys.clone());
            let mut out = Vec::new();
            let mut found = false;
            for b in &input {
                found = w.feed(&[*b], &mut out);
                if found { break; }
            }
            let at = input.windows(keys.len()).position(|x| x == keys);
            match at {
                Some(at) => { prop_assert!(found); prop_assert_eq!(&out[..], &input[..at]); }
                None => { prop_assert!(!found); prop_assert!(input.starts_with(&out)); prop_assert!(input.len() - out.len() < keys.len()); }
            }
        }
    }
}
