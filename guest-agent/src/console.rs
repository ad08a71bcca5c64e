//! The guest's console: kept by the VMM for the post-mortem, not read in daily life.
//! Few lines, on errors only: every character costs an exit of the virtual CPU.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line. A console that cannot be written to is nobody's to tell.
pub fn warn(text: Arguments) {
    writeln!(std::io::stderr(), "husk-agent: {text}").ok();
}
