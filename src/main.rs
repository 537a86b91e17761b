//! The `graphtool` program: everything is in the library.

fn main() -> std::process::ExitCode {
    graphtool::cli::main()
}
