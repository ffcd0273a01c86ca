//! `file`.

use crate::cli::FileArgs;
use crate::exit::Failure;
use crate::output;
use diag_client::Client;
use std::fs::File;
use std::io::Write;

pub(crate) fn run(client: &Client, args: &FileArgs) -> Result<(), Failure> {
    let mut stream = client.read_file(&args.path, args.follow)?;
    let Some(path) = &args.output else {
        return output::copy("file", &mut stream, &mut std::io::stdout());
    };
    let failed = |source| Failure::File {
        path: path.clone(),
        source,
    };
    // After the VM has said that it has the file, so that a typing error costs nothing.
    let mut file = File::create(path).map_err(failed)?;
    output::copy_plain("file", &mut stream, &mut file).map_err(|failure| match failure {
        Failure::Output(source) => failed(source),
        other => other,
    })?;
    file.flush().map_err(failed)
}
