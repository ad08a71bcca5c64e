//! The comparison table: the same spec and the same questions under runc and under us, on
//! the same node, must have the same answers.
//!
//! `topics/` holds the rows, `table` says what a row is, `drive` asks, `judge` compares.
//! What is compared: everything a snippet or a command writes, exit codes, the class of an
//! error, the shim's status codes, and every group's events. Differences that are wanted are
//! in `tests/differences.toml`, and must be found.

mod differences;
mod drive;
mod judge;
mod live;
mod table;
mod topics;

use std::collections::BTreeSet;

/// One test a topic, so that each can be run, and fail, alone.
macro_rules! compared {
    ($attributes:tt $list:ident: $($topic:ident),+ $(,)?) => {
        $(compared!(@test $attributes $list $topic);)+

        /// The topics by name.
        pub const TOPICS: &[(&str, &[super::table::Group])] =
            &[$((stringify!($topic), super::topics::$topic::$list)),+];
    };
    (@test [$($attribute:tt)*] $list:ident $topic:ident) => {
        #[test]
        $($attribute)*
        fn $topic() {
            super::judge::compare(stringify!($topic), super::topics::$topic::$list);
        }
    };
}

/// What every run compares.
mod short {
    compared!(
        [] SHORT: capabilities, devices, errors, execs, exits, files, hooks, mounts, namespaces,
        processes, resources, seccomp, tasks, terminals, users,
    );
}

/// What only `make e2e-full` has time for: a container takes seconds on the node.
mod full {
    compared!(
        [#[ignore = "full"]] FULL: capabilities, devices, errors, exits, hooks, mounts,
        namespaces, processes, resources, seccomp, users,
    );
}

fn all_topics() -> impl Iterator<Item = &'static (&'static str, &'static [table::Group])> {
    [short::TOPICS, full::TOPICS].into_iter().flatten()
}

#[test]
fn the_table_is_long_and_names_each_case_once() {
    let mut names = BTreeSet::new();
    for (topic, groups) in all_topics() {
        for case in groups.iter().flat_map(table::Group::case_names) {
            let name = format!("{topic}/{case}");
            assert!(!names.contains(&name), "twice in the table: {name}");
            names.insert(name);
        }
    }
    let own = names.iter().filter(|name| !name.ends_with(": events"));
    assert!(own.count() >= 120, "{names:#?}");
    for excuse in differences::all() {
        assert!(
            names.contains(&excuse.case),
            "{:?} of tests/differences.toml names no case: {}",
            excuse.id,
            excuse.case
        );
    }
}
