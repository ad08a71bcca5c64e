//! CreateSandbox: checks the pod and writes the files its containers share. Nothing runs yet.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use containerd_shim_protos::sandbox_api::{CreateSandboxRequest, CreateSandboxResponse};

use super::pod::{Pod, PodError};
use super::pod_config::PodConfig;
use crate::error::Error;
use crate::ids;
use crate::sandbox::state_file::StateFile;
use crate::shim::Shim;

/// Of the files, whatever this process's umask: any user of a container may read them.
const FILE_MODE: u32 = 0o644;

/// Creates the shim's pod.
pub async fn create(
    shim: Arc<Shim>,
    request: CreateSandboxRequest,
) -> Result<CreateSandboxResponse, Error> {
    let id = request.sandbox_id.clone();
    ids::check(&id)?;
    if id != shim.id() {
        return Err(PodError::NotFound(id).into());
    }
    if shim.pod.get().is_some() {
        return Err(PodError::Exists(id).into());
    }
    if *shim.containers.count().borrow() > 0 {
        return Err(PodError::InUse(id).into());
    }
    if !request.rootfs.is_empty() {
        log::warn!("the sandbox's rootfs is ignored: nothing of it would run");
    }
    let config = PodConfig::of(&request)?;
    let file = shim.file.clone();
    let written = tokio::task::spawn_blocking(move || {
        let etc = write_files(&file, &config.etc)?;
        Ok::<_, Error>((config, etc))
    });
    let (config, etc) = written
        .await
        .map_err(|_| Error::Panicked("CreateSandbox"))??;
    let pod = Pod::new(id, config.spec, config.kernel_params, etc);
    shim.pod.fill(pod)?;
    Ok(CreateSandboxResponse::default())
}

/// In the bundle, which is the pod's own. They are removed with the shim.
fn write_files(file: &StateFile, texts: &[(&'static str, String)]) -> Result<Vec<PathBuf>, Error> {
    let bundle = file.state().bundle;
    let paths: Vec<_> = texts.iter().map(|(name, _)| bundle.join(name)).collect();
    let failed = |path: &Path, source: io::Error| Error::PodFile {
        path: path.to_owned(),
        source,
    };
    file.record(|state| state.files.clone_from(&paths))
        .map_err(|error| failed(&file.dir().join("state.json"), error))?;
    for (path, (_, text)) in paths.iter().zip(texts) {
        let written = fs::write(path, text)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(FILE_MODE)));
        written.map_err(|error| failed(path, error))?;
    }
    Ok(paths)
}
