//! `cargo appliance`: reads the command line, calls the library, tells what went wrong in one message.

use anyhow::{Context, Result};
use appliance::build::verify::Compared;
use appliance::build::{self, BuildOptions, Built, Variant};
use appliance::fuzz;
use appliance::machine::door::Door;
use appliance::machine::report::{Report, print, say};
use appliance::machine::state::{Plan, StateDir};
use appliance::machine::{bench, control, env, flash, lan, pairing, run, suite, supervisor, swap};
use clap::Parser;
use cli::{Cli, Command};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

mod cli;

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    if let Command::Supervise(options) = command {
        return done(supervisor::supervise(StateDir::at(options.state)?, options.leash));
    }
    let dir = || StateDir::locate();
    match command {
        Command::Run(options) if options.no_build => done(start_zone(&dir()?, &options.boot)),
        Command::Run(options) => done(run_zone(&dir()?, &options)),
        Command::Start(options) => done(start_zone(&dir()?, &options)),
        Command::Test(options) if options.list_endpoints => done(suite::list_endpoints(&workspace()?)),
        Command::Test(options) => done(test(&dir()?, &options)),
        Command::Fuzz(options) => done(run_fuzz(options)),
        Command::Build(options) => done(build_only(&options)),
        Command::Release(options) => done(release(&options)),
        Command::Verify(options) => verify(&options),
        Command::Flash(options) => done(flash_image(options)),
        Command::Env => done(print_env(&dir()?)),
        Command::Exec(options) => exec(&dir()?, options),
        Command::Logs(options) => logs(&dir()?, &options),
        Command::Swap(options) => done(swap_services(&dir()?, &options)),
        Command::Client(options) => done(client(&dir()?, options)),
        Command::Status => Ok(if control::status(&dir()?)? { ExitCode::SUCCESS } else { ExitCode::FAILURE }),
        Command::Stop => done(control::stop(&dir()?)),
        Command::Kill => done(control::kill(&dir()?)),
        Command::Bench(cli::Bench { name, json, arguments }) => {
            done(bench::run(&door(&dir()?)?, name.as_deref(), &arguments, json))
        }
        Command::Lock(source) => done(refresh_lock(&source)),
        Command::Cache(cli::Cache::Gc { days }) => done(collect_cache(days)),
        Command::Size(source) => done(size(&source)),
        Command::Supervise(_) => Ok(ExitCode::FAILURE),
    }
}

fn client(dir: &StateDir, options: cli::Client) -> Result<()> {
    let cli::Client { name, role, project, to, take_back } = options;
    if take_back {
        return pairing::take_back(dir, &name);
    }
    let to = to.unwrap_or_else(|| PathBuf::from(&name));
    pairing::certificate(dir, &name, &role, project.as_deref(), &to)
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

/// The sources that this program was built from, or those that cargo runs it in.
fn workspace() -> Result<PathBuf> {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| built_in.to_owned(), PathBuf::from);
    let root = package.ancestors().chain(built_in.ancestors()).find(|dir| dir.join("image-recipes").is_dir());
    let root = root.map(Path::to_owned);
    root.with_context(|| {
        format!("the project's sources are not in {}: run `cargo appliance` in them", package.display())
    })
}

fn build_options(source: &cli::Source, variant: Variant) -> Result<BuildOptions> {
    Ok(BuildOptions {
        workspace: workspace()?,
        cold: false,
        variant,
        mirror: source.mirror.clone(),
        locked: source.locked,
        snapshots: source.snapshot.clone(),
        version: None,
        flaw: build::Flaw::None,
    })
}

fn build_image(source: &cli::Source, variant: Variant, report: &mut Report) -> Result<Built> {
    build::build(&build_options(source, variant)?, report).context("the image was not built")
}

fn refresh_lock(source: &cli::Source) -> Result<()> {
    let mut report = Report::new();
    let changed = build::refresh_lock(&build_options(source, Variant::Development)?, &mut report)?;
    drop(report);
    for line in &changed {
        print(line);
    }
    print(&format!("{} packages changed; `cargo appliance build` takes them", changed.len()));
    Ok(())
}

fn collect_cache(days: u32) -> Result<()> {
    let collected = build::collect_cache(None, Duration::from_secs(u64::from(days) * 24 * 3600))?;
    for path in &collected.removed {
        print(&format!("removed {}", path.display()));
    }
    let build::cache::Collected { removed, kept, packages, freed_mib } = &collected;
    print(&format!("{} steps removed, {kept} kept, {packages} packages removed, {freed_mib} MiB freed", removed.len()));
    Ok(())
}

fn size(source: &cli::Source) -> Result<()> {
    let mut report = Report::new();
    let built = build_image(source, Variant::Release, &mut report)?;
    drop(report);
    for item in build::size::report(&built.image, &built.root)? {
        print(&format!("{:>12.1} MiB  {}", item.bytes as f64 / f64::from(1 << 20), item.name));
    }
    Ok(())
}

fn release(options: &cli::Release) -> Result<()> {
    let variant = if options.development { Variant::Development } else { Variant::Release };
    let mut build = build_options(&options.source, variant)?;
    build.version.clone_from(&options.version);
    build.flaw = match options.flaw {
        None => build::Flaw::None,
        Some(cli::Flaw::Panic) => build::Flaw::Panic,
        Some(cli::Flaw::Verity) => build::Flaw::Verity,
        Some(cli::Flaw::Service) => build::Flaw::Service,
    };
    let mut report = Report::new();
    let built = build::build(&build, &mut report).context("the image was not built")?;
    drop(report);
    for file in build::release::write_release(&build, &built, &options.out, options.update_only)? {
        print(&file.display().to_string());
    }
    Ok(())
}

fn verify(options: &cli::Verify) -> Result<ExitCode> {
    let variant = if options.development { Variant::Development } else { Variant::Release };
    let mut build = build_options(&options.source, variant)?;
    build.version.clone_from(&options.version);
    build.cold = options.cold;
    let mut report = Report::new();
    let built = build::build(&build, &mut report).context("the image was not built")?;
    drop(report);
    let verdict = build::verify::verify(&build, &built, &options.image)?;
    print(&format!("image     {}\nsha256    {}", options.image.display(), verdict.sha256));
    print(&format!("built     {}\nsha256    {}", built.image.display(), built.sha256));
    for (name, compared) in &verdict.partitions {
        print(&match compared {
            Compared::Same => format!("{name}: the same"),
            Compared::Signatures(0) => format!("{name}: follows from what it is about"),
            Compared::Signatures(files) => format!("{name}: the same but for signatures and keys, in {files} files"),
            Compared::Differs(what) => format!("{name}: differs: {what}"),
        });
    }
    print(match (verdict.partitions.is_empty(), verdict.holds()) {
        (true, _) => "The image is what these sources give, bit for bit.",
        (_, true) => "The image is what these sources give; its signatures are by other keys or of another time.",
        _ => "The image is not what these sources give.",
    });
    Ok(if verdict.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build_only(options: &cli::Build) -> Result<()> {
    let variant = if options.development { Variant::Development } else { Variant::Release };
    let mut report = Report::new();
    let built = build_image(&options.source, variant, &mut report)?;
    drop(report);
    let packages = match built.moved {
        0 => "as in image-recipes/packages.lock".into(),
        moved => format!("not locked: {moved} are not as in image-recipes/packages.lock"),
    };
    let (image, size) = (built.image.display(), built.size);
    print(&format!("image     {image}\nsize      {size} bytes\nsha256    {}\npackages  {packages}", built.sha256));
    Ok(())
}

const MEMORY_MIB: u32 = 4096;
const CPUS: u16 = 2;

fn machine_options(machine: &cli::Machine) -> run::Options {
    run::Options {
        detach: true,
        memory_mib: machine.memory.unwrap_or(MEMORY_MIB),
        cpus: machine.cpus.unwrap_or(CPUS),
        disk_gib: machine.disk,
        one_disk: machine.one_disk,
        fresh: false,
        web_port: None,
        docker_port: None,
        unsafe_cache: false,
        deadline_s: machine.deadline,
        console_journal: machine.console_journal,
        lan: false,
        secure_boot: machine.secure_boot,
    }
}

fn boot_options(boot: &cli::Boot) -> run::Options {
    run::Options {
        detach: boot.detach,
        fresh: boot.fresh,
        lan: boot.lan,
        web_port: boot.web_port,
        docker_port: boot.docker_port,
        ..machine_options(&boot.machine)
    }
}

/// Boots the last zone again as it was.
fn start_zone(dir: &StateDir, boot: &cli::Boot) -> Result<()> {
    let image = run::last_image(dir)?;
    let mut machine = boot_options(boot);
    if let Some(before) = dir.read_json::<Plan>("plan.json")? {
        machine.memory_mib = boot.machine.memory.unwrap_or(before.memory_mib);
        machine.cpus = boot.machine.cpus.unwrap_or(before.cpus);
        machine.secure_boot |= before.secure_boot;
    }
    run::check(dir, &machine)?;
    run::run(dir, &image, &machine)
}

fn run_zone(dir: &StateDir, options: &cli::Run) -> Result<()> {
    let machine = boot_options(&options.boot);
    run::check(dir, &machine)?;
    let variant = if options.release { Variant::Release } else { Variant::Development };
    let mut report = Report::new();
    let built = build_image(&options.source, variant, &mut report)?;
    // Its thread must be gone before signals are blocked.
    drop(report);
    run::run(dir, &built.into(), &machine)
}

fn test(dir: &StateDir, options: &cli::Test) -> Result<()> {
    let started = Instant::now();
    let machine = run::Options { fresh: true, ..machine_options(&options.machine) };
    run::check(dir, &machine)?;
    let workspace = workspace()?;
    let mut report = Report::new();
    suite::without_boot(&workspace, &mut report)?;
    let built = build_image(&options.source, Variant::Development, &mut report)?;
    drop(report);
    run::run(dir, &built.into(), &machine).inspect_err(|_| drop(control::stop(dir)))?;
    let mut report = Report::new();
    let tested = suite::booted(&workspace, dir, options.full, &mut report);
    let stopped = suite::stop(dir, &mut report);
    drop(report);
    tested.and(stopped)?;
    print(&format!("all tests passed in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(())
}

fn run_fuzz(options: cli::Fuzz) -> Result<()> {
    let workspace = workspace()?;
    let mut report = Report::new();
    match (options.targets.as_slice(), options.input) {
        _ if options.list => fuzz::list(&workspace, &mut report),
        ([target], Some(input)) => fuzz::once(&workspace, target, &input, &mut report),
        (_, Some(_)) => anyhow::bail!("an input is for one target"),
        (_, None) => {
            let fuzz = fuzz::Options {
                targets: options.targets,
                seconds: options.seconds,
                jobs: options.jobs,
                keep: options.keep,
            };
            fuzz::run(&workspace, &fuzz, &mut report)
        }
    }
}

fn flash_image(options: cli::Flash) -> Result<()> {
    let mut report = Report::new();
    let built = build_image(&options.source, Variant::Release, &mut report)?;
    drop(report);
    let options = flash::Options { target: options.target, yes: options.yes, overwrite: options.overwrite };
    flash::flash(&built.image, &options)
}

fn print_env(dir: &StateDir) -> Result<()> {
    let zone = dir.require_running()?;
    print(env::shell(&env::variables(dir, &zone)).trim_end());
    Ok(())
}

fn door(dir: &StateDir) -> Result<Door> {
    let zone = dir.require_running()?;
    lan::join(&zone)?;
    Door::of(dir, &zone)
}

fn exit_code(code: u32) -> ExitCode {
    // Threads may still wait for input; the process's end is theirs.
    ExitCode::from(u8::try_from(code).unwrap_or(255))
}

fn exec(dir: &StateDir, options: cli::Exec) -> Result<ExitCode> {
    let argv = options.command.into_iter().map(OsStringExt::into_vec).collect();
    let env = options.env.into_iter().map(String::into_bytes).collect();
    door(dir)?.attach(argv, env, options.tty).map(exit_code)
}

fn swap_services(dir: &StateDir, options: &cli::Swap) -> Result<()> {
    let door = door(dir)?;
    let mut report = Report::new();
    let services = build::services_only(&build_options(&options.source, Variant::Development)?, &mut report)
        .context("the services were not built")?;
    swap::swap(&door, &services, &options.services, &mut report)
}

fn logs(dir: &StateDir, options: &cli::Logs) -> Result<ExitCode> {
    let mut argv: Vec<String> = ["journalctl", "--no-pager", "--boot"].map(String::from).into();
    if let Some(unit) = &options.unit {
        argv.extend(["--unit".into(), unit.clone()]);
    }
    if let Some(lines) = options.lines {
        argv.extend(["--lines".into(), lines.to_string()]);
    }
    if options.follow {
        argv.push("--follow".into());
    }
    door(dir)?.attach(argv.into_iter().map(String::into_bytes).collect(), Vec::new(), false).map(exit_code)
}
