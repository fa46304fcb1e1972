//! The program `kcradle`; all of it is in the library.

fn main() -> std::process::ExitCode {
    cradle::main()
}
