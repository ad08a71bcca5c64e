//! Runs a group's cases under one runtime.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use husk_tests::rootfs::Rootfs;
use husk_tests::{Output, Runtime, ctr, process};
use serde_json::{Value, json};

use super::live::Live;
use super::table::{Cases, Group, Outcome};

/// Between the snippets' outputs: nothing a program of the tests writes.
const CASE: char = '\u{1e}';
const CODE: char = '\u{1f}';

/// What a group's cases came to, by their names without the group's.
#[derive(Debug)]
pub struct Answers {
    /// The container they were asked in.
    pub container: String,
    /// Case and outcome.
    pub cases: BTreeMap<&'static str, Outcome>,
}

/// The path on the host of a file that a spec names, in the directory beside its root:
/// `file` and the directory `dir` with `dir/inner` are there, everything else is free.
pub fn host(spec: &Value, name: &str) -> String {
    let root = PathBuf::from(spec["root"]["path"].as_str().unwrap_or_default());
    root.with_file_name("host")
        .join(name)
        .to_string_lossy()
        .into_owned()
}

/// Makes a container of the group under a runtime, asks everything and removes it.
///
/// # Panics
/// If the node or containerd fails, as opposed to a runtime.
pub fn ask(group: &Group, runtime: Runtime) -> Answers {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // Of one length, so that what is cut to a width is cut alike.
    let container = format!("compared-{number:04}");
    let rootfs = Rootfs::mount();
    populate(&rootfs);
    let spec = spec(group, &rootfs, &container);
    let config = rootfs.host().with_file_name("config.json");
    fs::write(&config, spec.to_string()).expect("a spec");

    let run = |flags: &[&str]| {
        let mut ctr = Command::new("ctr");
        ctr.args(["run", "--runtime", runtime.name()])
            .args(flags)
            .arg("--config")
            .arg(&config)
            .arg(&container);
        process::run(ctr)
    };
    let mut cases = BTreeMap::new();
    match group.cases {
        Cases::Command(_) => {
            cases.insert("ends", of_run(&run(&["--rm"])));
        }
        Cases::Shell(snippets) => {
            let output = run(&["--rm"]);
            cases.extend(of_shell(runtime, snippets, &output));
        }
        Cases::Running(_, requests) => {
            let started = run(&["--detach"]);
            if started.code == 0 {
                let live = Live::of(&container, &spec);
                for (name, request) in requests {
                    cases.insert(*name, request(&live));
                }
                drop(live);
                remove(&container);
            } else {
                let outcome = of_run(&started);
                cases.extend(requests.iter().map(|(name, _)| (*name, outcome.clone())));
            }
        }
    }
    if let Some(snippet) = group.after {
        cases.insert("afterwards", on_host(snippet, &rootfs));
    }
    // What a runtime may print of the container's own name and place.
    for Outcome(text) in cases.values_mut() {
        *text = text.replace(&container, "CONTAINER").replace(
            &*rootfs.host().with_file_name("").to_string_lossy(),
            "PLACE/",
        );
    }
    Answers { container, cases }
}

fn populate(rootfs: &Rootfs) {
    let host = rootfs.host();
    fs::write(host.join("file"), "from the host\n").expect("a file");
    fs::create_dir(host.join("dir")).expect("a directory");
    fs::write(host.join("dir/inner"), "from inside\n").expect("a file");
}

/// The spec `ctr oci spec` prints, varied.
fn spec(group: &Group, rootfs: &Rootfs, container: &str) -> Value {
    static BASE: OnceLock<Value> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let text = ctr(&["oci", "spec"]).succeeded().text();
        serde_json::from_str(&text).expect("a spec")
    });
    let mut spec = base.clone();
    spec["root"]["path"] = json!(rootfs.path());
    spec["linux"]["cgroupsPath"] = json!(format!("/default/{container}"));
    spec["process"]["env"] = json!(["PATH=/bin"]);
    spec["process"]["args"] = match group.cases {
        Cases::Command(command) => json!(command),
        Cases::Shell(snippets) => json!(["sh", "-c", script(snippets)]),
        Cases::Running(script, _) => json!(["sh", "-c", script]),
    };
    (group.spec)(&mut spec);
    spec
}

/// One script that runs all snippets and marks where each one's output begins and ends.
fn script(snippets: &[(&str, &str)]) -> String {
    let marked = |(number, (_, snippet)): (usize, &(&str, &str))| {
        format!(
            "printf '{CASE}{number}\\n'\n(\n{snippet}\n) 2>&1 </dev/null\nprintf '{CODE}%s\\n' $?\n"
        )
    };
    snippets.iter().enumerate().map(marked).collect()
}

/// The outcome of `ctr run`: the container's own, or why there was none.
fn of_run(output: &Output) -> Outcome {
    match output.stderr.lines().find(|line| line.starts_with("ctr: ")) {
        Some(reason) => Outcome::refused(reason),
        None => Outcome::ended(output.code.into(), &output.text(), &output.stderr),
    }
}

/// The outcomes of all snippets. One the shell did not come to has the outcome of the run.
fn of_shell(
    runtime: Runtime,
    snippets: &'static [(&'static str, &'static str)],
    output: &Output,
) -> Vec<(&'static str, Outcome)> {
    let text = output.text();
    let outcome = |number: usize| {
        let (_, rest) = text.split_once(&format!("{CASE}{number}\n"))?;
        let (said, rest) = rest.split_once(CODE)?;
        let code: i64 = rest.lines().next()?.parse().ok()?;
        // The shell's own complaint is equal everywhere, and proves nothing.
        if code == 127 {
            return Some(Outcome(format!("broken under {runtime:?}: {said}")));
        }
        Some(Outcome::ended(code, said, ""))
    };
    snippets
        .iter()
        .enumerate()
        .map(|(number, (name, _))| (*name, outcome(number).unwrap_or_else(|| of_run(output))))
        .collect()
}

fn on_host(snippet: &str, rootfs: &Rootfs) -> Outcome {
    let output = Command::new("sh")
        .args(["-c", snippet])
        .current_dir(rootfs.host())
        .output()
        .expect("the host's shell");
    let code = output
        .status
        .code()
        .or(output.status.signal())
        .unwrap_or_default();
    Outcome::ended(
        code.into(),
        &String::from_utf8_lossy(&output.stdout),
        &String::from_utf8_lossy(&output.stderr),
    )
}

/// Kills and removes a detached container whatever state its cases left it in.
fn remove(container: &str) {
    ctr(&["task", "delete", "--force", container]);
    ctr(&["container", "delete", container]).succeeded();
}
