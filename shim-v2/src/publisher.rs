//! Events through a program, as containerd's oldest shims sent them: for a caller that
//! names `-publish-binary` and sets no `TTRPC_ADDRESS`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::shim::event::Envelope;
use protobuf::Message;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::events::EventSink;

/// Deadline of one delivery.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// Runs `<program> --address <address> publish ...` for every event, which it reads
/// from its standard input.
pub struct Publisher {
    program: PathBuf,
    address: String,
}

impl Publisher {
    /// `None` when there is no program, or no daemon it could talk to.
    pub fn new(program: &str, address: &str) -> Option<Self> {
        (!program.is_empty() && !address.is_empty()).then(|| Self {
            program: program.into(),
            address: address.to_owned(),
        })
    }

    async fn publish(&self, envelope: &Envelope) -> Result<(), String> {
        let event = envelope.event.write_to_bytes();
        let event = event.map_err(|error| error.to_string())?;
        let failed = |error: std::io::Error| format!("{}: {error}", self.program.display());
        let mut publisher = Command::new(&self.program)
            .args(["--address", &self.address, "publish"])
            .args(["--topic", &envelope.topic])
            .args(["--namespace", &envelope.namespace])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = publisher.stdin.take() {
            stdin.write_all(&event).await.map_err(failed)?;
        }
        match publisher.wait().await.map_err(failed)? {
            status if status.success() => Ok(()),
            status => Err(format!("{}: {status}", self.program.display())),
        }
    }
}

#[async_trait]
impl EventSink for Publisher {
    async fn send(&self, envelope: &Envelope) -> Result<(), String> {
        match timeout(SEND_DEADLINE, self.publish(envelope)).await {
            Ok(published) => published,
            Err(_) => Err(format!("{} does not end", self.program.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::well_known_types::any::Any;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn without_a_program_or_a_daemon_there_is_no_publisher() {
        assert!(Publisher::new("", "/run/c.sock").is_none());
        assert!(Publisher::new("/usr/bin/containerd", "").is_none());
    }

    #[tokio::test]
    async fn the_program_is_told_topic_namespace_and_event() {
        let dir = std::env::temp_dir().join(format!("husk-publish-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let program = dir.join("program");
        let script = "#!/bin/sh\ncd \"${0%/*}\"; echo \"$@\" >args; cat >event; [ ! -e fail ]\n";
        std::fs::write(&program, script).unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&program, executable).unwrap();
        let event = Any {
            type_url: "t".to_owned(),
            value: vec![1, 2],
            ..Any::default()
        };
        let envelope = Envelope {
            namespace: "n".to_owned(),
            topic: "/tasks/exit".to_owned(),
            event: Some(event.clone()).into(),
            ..Envelope::default()
        };
        let publisher = Publisher::new(program.to_str().unwrap(), "/run/c.sock").unwrap();
        publisher.send(&envelope).await.unwrap();
        let args = std::fs::read_to_string(dir.join("args")).unwrap();
        assert_eq!(
            args,
            "--address /run/c.sock publish --topic /tasks/exit --namespace n\n"
        );
        let sent = std::fs::read(dir.join("event")).unwrap();
        assert_eq!(Any::parse_from_bytes(&sent).unwrap(), event);
        std::fs::write(dir.join("fail"), "").unwrap();
        let error = publisher.send(&envelope).await.unwrap_err();
        assert!(error.ends_with("exit status: 1"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
