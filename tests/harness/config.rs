//! Our configuration on the node.

use std::fs;

/// `/etc/husk/config.toml` for as long as it lives.
pub struct Config(());

impl Config {
    /// Writes it.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn set(text: &str) -> Self {
        fs::create_dir_all("/etc/husk").expect("a folder in /etc");
        fs::write("/etc/husk/config.toml", text).expect("the configuration");
        Self(())
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        fs::remove_dir_all("/etc/husk").expect("the configuration");
    }
}
