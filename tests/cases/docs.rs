//! The documents say what is there: paths, kernel options, keys, file lengths.

use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a source file, tests not counted.
const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("tests/ is in the workspace")
        .to_owned()
}

/// Every file of the project whose name ends so, build output left out.
fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(directory: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(directory).expect("a readable folder");
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    walk(&path, ending, found);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// What stands between backticks, fenced blocks left out.
fn code_spans(markdown: &str) -> Vec<String> {
    let mut fenced = false;
    let mut spans = Vec::new();
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            spans.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    spans
}

/// `a/{b,c}.rs` as `a/b.rs`, `a/c.rs`.
fn expand(span: &str) -> Vec<String> {
    let Some((head, rest)) = span.split_once('{') else {
        return vec![span.to_owned()];
    };
    let Some((choices, tail)) = rest.split_once('}') else {
        return vec![span.to_owned()];
    };
    choices
        .split(',')
        .flat_map(|choice| expand(&format!("{head}{}{tail}", choice.trim())))
        .collect()
}

/// Whether a code span is meant as a path of the project: it starts with one of its
/// folders, or is a relative path to a source, and holds nothing but path characters.
fn is_project_path(path: &str) -> bool {
    let plain = path
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let folders = [
        "vmm/",
        "guest-agent/",
        "shim-v2/",
        "kernel-config/",
        "tests/",
        ".ci/",
        "src/",
    ];
    plain && folders.iter().any(|folder| path.starts_with(folder))
}

#[test]
fn every_path_named_in_a_document_exists() {
    let mut missing = Vec::new();
    for document in files(".md") {
        let folder = document.parent().expect("a file is in a folder").to_owned();
        for path in code_spans(&read(&document))
            .iter()
            .flat_map(|span| expand(span))
        {
            if is_project_path(&path)
                && !root().join(&path).exists()
                && !folder.join(&path).exists()
            {
                missing.push(format!("{}: {path}", shown(&document)));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "named but not there:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_relative_link_of_a_document_leads_somewhere() {
    let mut missing = Vec::new();
    for document in files(".md") {
        let folder = document.parent().expect("a file is in a folder").to_owned();
        for link in read(&document).split("](").skip(1) {
            let target = link.split([')', '#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                missing.push(format!("{}: {target}", shown(&document)));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "linked but not there:\n{}",
        missing.join("\n")
    );
}

/// The twelve stops of the README's table, as `(number, files)`.
fn stops() -> Vec<(usize, Vec<String>)> {
    read(&root().join("README.md"))
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let number = cells.get(1)?.parse().ok()?;
            let files = code_spans(cells.get(3)?)
                .iter()
                .flat_map(|span| expand(span))
                .collect();
            Some((number, files))
        })
        .collect()
}

#[test]
fn the_readme_has_the_twelve_stops_and_each_file_says_its_own() {
    let stops = stops();
    let numbers: Vec<usize> = stops.iter().map(|(number, _)| *number).collect();
    assert_eq!(
        numbers,
        (1..=12).collect::<Vec<_>>(),
        "the table of stops in README.md"
    );
    let mut wrong = Vec::new();
    for (number, paths) in stops {
        for path in paths.iter().filter(|path| path.ends_with(".rs")) {
            let file = root().join(path);
            let first = fs::read_to_string(&file).unwrap_or_default();
            if !first.starts_with(&format!("//! Stop {number} of twelve")) {
                wrong.push(format!(
                    "{path} does not begin with `//! Stop {number} of twelve`"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_source_file_is_longer_than_its_reader() {
    let mut long = Vec::new();
    for file in files(".rs") {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let tests_only = name.ends_with("tests.rs") || name.ends_with("_test.rs");
        let lines = read(&file)
            .lines()
            .take_while(|line| !line.starts_with("#[cfg(test)]") && !line.starts_with("mod tests"))
            .count();
        if !tests_only && lines > MAX_LINES {
            long.push(format!("{}: {lines} lines", shown(&file)));
        }
    }
    assert!(
        long.is_empty(),
        "longer than {MAX_LINES} lines:\n{}",
        long.join("\n")
    );
}

#[test]
fn every_kernel_option_named_is_in_the_kernels_configuration() {
    let fragments: String = files(".config").iter().map(|file| read(file)).collect();
    let mut missing = Vec::new();
    let mut check = |file: &Path, text: &str| {
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if word.starts_with("CONFIG_") && !fragments.contains(word) {
                missing.push(format!("{}: {word}", shown(file)));
            }
        }
    };
    for file in files(".md") {
        check(&file, &read(&file));
    }
    // In a source the prefix alone may begin any constant; an option is quoted.
    for file in files(".rs") {
        for span in code_spans(&read(&file)) {
            check(&file, &span);
        }
    }
    missing.sort();
    missing.dedup();
    assert!(
        missing.is_empty(),
        "not in kernel-config/:\n{}",
        missing.join("\n")
    );
}

/// The first cells of all tables' rows: the keys they document.
fn documented_keys(markdown: &str) -> Vec<String> {
    markdown
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .map(|cell| cell.trim().trim_matches('`').to_owned())
        .collect()
}

#[test]
fn every_key_of_the_shims_configuration_is_documented() {
    let documented = documented_keys(&read(&root().join("shim-v2/README.md")));
    let source = read(&root().join("shim-v2/src/config.rs"));
    let start = source
        .find("pub struct Config {")
        .expect("the struct of all keys");
    let body = &source[start..start + source[start..].find("\n}").expect("its end")];
    let keys = body.lines().filter_map(|line| {
        line.trim()
            .strip_prefix("pub ")?
            .split_once(':')
            .map(|(key, _)| key)
    });
    let missing: Vec<&str> = keys
        .filter(|key| !documented.iter().any(|known| known == key))
        .collect();
    assert!(missing.is_empty(), "not in shim-v2/README.md: {missing:?}");
}

#[test]
fn the_exit_codes_of_the_vmm_are_documented() {
    let documented = documented_keys(&read(&root().join("vmm/README.md")));
    let source = read(&root().join("vmm/src/exit.rs"));
    let codes: Vec<&str> = source
        .lines()
        .filter_map(|line| {
            line.trim()
                .strip_suffix(',')?
                .split_once(" = ")
                .map(|(_, code)| code)
        })
        .filter(|code| code.parse::<u8>().is_ok())
        .collect();
    assert!(codes.len() >= 8, "{codes:?}");
    let missing: Vec<&&str> = codes
        .iter()
        .filter(|code| !documented.iter().any(|known| known == *code))
        .collect();
    assert!(missing.is_empty(), "not in vmm/README.md: {missing:?}");
}

const BEGIN: &str = "<!-- differences: begin -->\n";
const END: &str = "<!-- differences: end -->\n";

/// The list of differences as the README shows it.
fn differences() -> String {
    let list: toml::Table = toml::from_str(&read(&root().join("tests/differences.toml")))
        .expect("tests/differences.toml");
    let differences = list["difference"].as_array().expect("differences");
    differences.iter().map(bullet).collect()
}

/// One difference as an item of a list, its lines no longer than the README's others.
fn bullet(difference: &toml::Value) -> String {
    const WIDTH: usize = 118;
    let mut text = String::from("*");
    let mut column = 1;
    let words = ["what", "why"].iter().flat_map(|key| {
        difference[key]
            .as_str()
            .expect("a sentence")
            .split_whitespace()
    });
    for word in words {
        let length = word.chars().count() + 1;
        if column + length > WIDTH {
            text.push_str("\n ");
            column = 1;
        }
        text.push(' ');
        text.push_str(word);
        column += length;
    }
    text + "\n"
}

/// `UPDATE=1` writes the section instead of checking it.
#[test]
fn the_readme_has_every_difference_from_runc() {
    let path = root().join("README.md");
    let readme = read(&path);
    let (head, rest) = readme.split_once(BEGIN).expect("where the list begins");
    let (shown, tail) = rest.split_once(END).expect("where the list ends");
    let wanted = differences();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, format!("{head}{BEGIN}{wanted}{END}{tail}")).expect("a README to write");
    } else {
        assert_eq!(
            shown, wanted,
            "README.md differs from tests/differences.toml; \
             `UPDATE=1 cargo test -p husk-tests --test docs` writes it"
        );
    }
}
