//! `graphtool passes`

use super::output;

/// List the passes that `optimize --passes` takes
#[derive(clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: Args) -> anyhow::Result<()> {
    Ok(crate::passes::catalogue().iter().try_for_each(|p| output::line(p.name()))?)
}
