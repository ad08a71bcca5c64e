//! URIs, and a file as an output.

use super::*;

#[test]
fn a_uri_names_a_fifo_a_file_or_a_program() {
    let parse = |uri| Target::parse("stdout", uri).unwrap();
    assert_eq!(parse("/run/f"), Target::Fifo("/run/f".into()));
    assert_eq!(parse("fifo:///run/f"), Target::Fifo("/run/f".into()));
    assert_eq!(parse("file:///a%20b?c#d"), Target::File("/a b".into()));
    let logger = Program {
        path: "/bin/l".into(),
        args: ["b", "/x y", "a", "", "flag", ""].map(Into::into).to_vec(),
    };
    let uri = "binary:///bin/l?b=%2Fx+y&a&flag=&b=again";
    assert_eq!(parse(uri), Target::Logger(logger));
}

#[test]
fn other_uris_are_refused() {
    for (which, uri) in [
        ("stdout", "tcp://host/path"),
        ("stderr", "binary:///bin/l"),
        ("stdin", "file:///etc/hostname"),
        ("stdin", "binary:///bin/l"),
    ] {
        let error = Target::parse(which, uri).unwrap_err();
        assert!(matches!(error, StdioError::Scheme { .. }), "{error}");
    }
    for uri in ["file://host", "file:///%zz", "file:///%2", "binary:///l?%f"] {
        let error = Target::parse("stdout", uri).unwrap_err();
        assert!(matches!(error, StdioError::Uri { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_file_and_its_directory_are_made_and_appended_to() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("deep/er/log");
    for word in ["one ", "two "] {
        let mut stdout = Output::open_file(&path).await.unwrap();
        let mut stderr = Output::open_file(&path).await.unwrap();
        stdout.write_all(word.as_bytes()).await.unwrap();
        stderr.write_all(b"err ").await.unwrap();
        stdout.close().await.unwrap();
    }
    let log = std::fs::read_to_string(&path).unwrap();
    assert_eq!(log, "one err two err ");
}
