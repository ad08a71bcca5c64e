//! Shell scripts as loggers.

use super::*;
use tempfile::TempDir;

fn shell(script: &str, args: &[&str]) -> Program {
    let args = ["-c", script].into_iter().chain(args.iter().copied());
    Program {
        path: "/bin/sh".into(),
        args: args.map(Into::into).collect(),
    }
}

/// The script's first argument is a path below a directory.
fn logging(script: &str) -> (TempDir, std::path::PathBuf, Program) {
    let root = tempfile::tempdir().unwrap();
    let log = root.path().join("log");
    let program = shell(script, &[log.to_str().unwrap(), "value"]);
    (root, log, program)
}

async fn gone(mut ended: Ended) {
    drop(ended.wait_for(|()| false).await);
}

#[tokio::test]
async fn a_logger_gets_both_streams_arguments_and_environment() {
    let script = "echo ready >&5; exec 5>&-; out=$(cat <&3); err=$(cat <&4)
        echo \"$out|$err|$1|$CONTAINER_ID|$CONTAINER_NAMESPACE\" >$0";
    let (_root, log, program) = logging(script);
    let mut logger = Logger::start(&program, "c", "ns").await.unwrap();
    logger.stdout.write_all(b"said").await.unwrap();
    logger.stderr.write_all(b"complained").await.unwrap();
    drop((logger.stdout, logger.stderr));
    gone(logger.ended).await;
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log, "said|complained|value|c|ns\n");
}

#[tokio::test]
async fn a_logger_that_closes_its_descriptor_is_ready() {
    let (_root, _log, program) = logging("exec 5>&-; cat <&3");
    let logger = Logger::start(&program, "c", "ns").await.unwrap();
    drop((logger.stdout, logger.stderr));
    gone(logger.ended).await;
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_an_error() {
    let program = Program {
        path: "/not/there".into(),
        ..Program::default()
    };
    let error = Logger::start(&program, "c", "ns").await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_logger_that_never_gets_ready_is_an_error_and_killed() {
    let (_root, log, program) = logging("echo $$ >$0; exec sleep infinity");
    let begin = tokio::time::Instant::now();
    let error = Logger::start(&program, "c", "ns").await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("descriptor 5"), "{error}");
    assert!(begin.elapsed() < READY_LIMIT * 2);
    // Time flies here: it may not have come to its first line.
    if let Ok(pid) = std::fs::read_to_string(log) {
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists() || pid.is_empty());
    }
}

#[tokio::test]
async fn a_logger_that_does_not_end_is_ended() {
    let script = "trap 'echo asked >$0; exit' TERM; echo ready >&5; while :; do sleep 0.05; done";
    let (_root, log, program) = logging(script);
    let logger = Logger::start(&program, "c", "ns").await.unwrap();
    // Only now, or the start would be given up before the script has begun.
    tokio::time::pause();
    drop((logger.stdout, logger.stderr));
    // Its follower sees it, and counts from there.
    tokio::task::yield_now().await;
    tokio::time::advance(END_LIMIT).await;
    tokio::time::resume();
    gone(logger.ended).await;
    assert_eq!(std::fs::read_to_string(log).unwrap(), "asked\n");
}
