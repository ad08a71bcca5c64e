//! Standard input and output: every byte, and the end of file.

use std::time::Duration;

use husk_tests::{Container, Node};

/// Bytes in which a lost, doubled or swapped block shows.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// What the longest transfer may take.
const LONG: Duration = Duration::from_secs(900);

/// Not `assert_eq`, which would print megabytes.
#[track_caller]
fn assert_same(got: &[u8], sent: &[u8]) {
    let first = got.iter().zip(sent).position(|(a, b)| a != b);
    assert_eq!(
        (got.len(), first),
        (sent.len(), None),
        "length and first difference"
    );
}

/// Runs `script` with `sent` on standard input and gives what it printed. Nothing is
/// sent before the script runs: `ctr` loses an end of file that comes sooner.
#[track_caller]
fn given(sent: &[u8], script: &str) -> Vec<u8> {
    let mut running = Container::script(&format!("echo ready; {script}")).start();
    running.wait_for("ready\n");
    running.feed(sent.to_vec());
    let mut stdout = running.finish_within(LONG).succeeded().stdout;
    stdout.split_off("ready\n".len())
}

#[test]
fn what_goes_in_comes_out() {
    let _node = Node::enter();
    assert_same(&given(b"x\n", "cat"), b"x\n");
}

#[test]
fn lengths_around_a_buffer_are_exact() {
    let _node = Node::enter();
    for length in [0, 1, 65_535, 65_536, 65_537] {
        let sent = pattern(length);
        assert_same(&given(&sent, "cat"), &sent);
    }
}

#[test]
fn eight_mebibytes_pass_both_ways() {
    let _node = Node::enter();
    let sent = pattern(8 << 20);
    assert_same(&given(&sent, "cat"), &sent);
}

#[test]
#[ignore = "full"]
fn a_hundred_mebibytes_pass_both_ways() {
    let _node = Node::enter();
    let sent = pattern(100 << 20);
    assert_same(&given(&sent, "cat"), &sent);
}

#[test]
fn eight_mebibytes_of_output_are_complete_though_the_program_has_ended() {
    let _node = Node::enter();
    let output = Container::script("yes 0123456789abcde | head -c 8388608")
        .run()
        .succeeded();
    assert_same(&output.stdout, &b"0123456789abcde\n".repeat(8 << 16));
}

#[test]
fn the_end_of_input_reaches_a_program_that_goes_on_writing() {
    let _node = Node::enter();
    assert_same(
        &given(&pattern(100_000), "wc -c; echo after"),
        b"100000\nafter\n",
    );
}

#[test]
fn a_program_that_does_not_read_its_input_ends_all_the_same() {
    let _node = Node::enter();
    assert_same(&given(&pattern(1 << 20), "echo done"), b"done\n");
}

#[test]
fn output_appears_while_the_program_runs() {
    let _node = Node::enter();
    let mut running = Container::script("echo first; read line; echo second").start();
    running.wait_for("first\n");
    running.write(b"go\n");
    running.close_stdin();
    assert_eq!(running.finish().succeeded().text(), "first\nsecond\n");
}

#[test]
fn a_background_child_that_holds_the_output_does_not_hold_the_container() {
    let _node = Node::enter();
    let output = Container::script("sleep 1000 & echo gone")
        .run()
        .succeeded();
    assert_eq!(output.text(), "gone\n");
}
