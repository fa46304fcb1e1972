//! The program `images`; all of it is in the library.

fn main() -> anyhow::Result<()> {
    images::main()
}
