//! Where tests find the real models and data that live beside the repository.

use std::path::PathBuf;

/// `../shared/data` seen from the workspace root, or `None`, said loudly, when it is absent.
#[allow(clippy::print_stderr, reason = "a skipped test must be visible in the test output")]
pub fn shared_data() -> Option<PathBuf> {
    let path = workspace_root().join("../shared/data");
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("\n*** SKIPPED: {} is absent, so this test on real data did not run ***\n", path.display());
    None
}

/// The root of the workspace whose tests are running. Cargo says which at run time; the path compiled in may be that of
/// another checkout that shares the target folder.
pub fn workspace_root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.join("../..")
}
