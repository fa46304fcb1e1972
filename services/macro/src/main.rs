//! The program `kraud-macro`; all of it is in the library.

fn main() -> anyhow::Result<()> {
    kraud_macro::main()
}
