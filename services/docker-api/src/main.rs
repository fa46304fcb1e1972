//! The program `docker-api`; all of it is in the library.

fn main() -> anyhow::Result<()> {
    docker_api::main()
}
