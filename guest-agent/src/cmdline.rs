//! What the shim tells the agent through the kernel command line.

/// The value of `key=value` in a kernel command line; the last one wins.
///
/// The kernel lets values be quoted; ours never need it, so quotes are not interpreted.
pub fn value<'a>(cmdline: &'a str, key: &str) -> Option<&'a str> {
    cmdline
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .rfind(|(name, _)| *name == key)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_value_among_others() {
        let line = "console=ttyS0 quiet husk.nonce=00ff panic=-1\n";
        assert_eq!(value(line, "husk.nonce"), Some("00ff"));
        assert_eq!(value(line, "panic"), Some("-1"));
    }

    #[test]
    fn a_flag_or_a_longer_key_is_not_a_match() {
        assert_eq!(value("quiet xhusk.nonce=1 husk.nonce", "husk.nonce"), None);
        assert_eq!(value("quiet", "quiet"), None);
    }

    #[test]
    fn the_last_value_wins() {
        assert_eq!(value("a=1 a=2", "a"), Some("2"));
    }

    #[test]
    fn a_value_may_hold_an_equals_sign() {
        assert_eq!(value("a=b=c", "a"), Some("b=c"));
    }
}
