//! The loop: watch, plan, carry out, write statuses. Every round starts from all resources, so a lost event or a failed
//! round costs nothing but time.

use crate::dns::Dns;
use crate::firewall::{self, Elements};
use crate::links::{self, Links};
use crate::listeners;
use crate::plan::{self, Plan, TapPlan, World};
use crate::resources::{KINDS, Resources};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use zone::client::{Changes, Client, Operation, Watch};
use zone::network::{DEFAULT_NETWORK, Network, NetworkName, NetworkSpec};
use zone::{ApiError, ErrorKind, Kind, Resource};

/// How long to wait before a failed round is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The world (host routes, taps that somebody removed) is compared this often even when no resource changes.
const PERIOD: Duration = Duration::from_secs(60);

/// The service's whole state; all of it can be found again.
#[derive(Debug)]
pub struct Reconciler {
    client: Client,
    links: Links,
    dns: Dns,
    dns_port: u16,
    resources: Resources,
    /// The taps as they were last set; empty at start.
    taps: BTreeMap<String, TapPlan>,
    /// The elements in the kernel; none when the table is not known to be ours.
    elements: Option<Elements>,
    /// Taps that have no endpoint may be removed: they were made for this database.
    collects: bool,
}

impl Reconciler {
    /// Connects to macro and the kernel.
    ///
    /// # Errors
    /// When netlink cannot be used.
    pub fn new(macro_socket: &Path, resolv_conf: &Path, dns_port: u16) -> Result<Self> {
        Ok(Self {
            client: Client::new(macro_socket),
            links: Links::new()?,
            dns: Dns::new(resolv_conf),
            dns_port,
            resources: Resources::default(),
            taps: BTreeMap::new(),
            elements: None,
            collects: false,
        })
    }

    /// Runs until the task is dropped; `ready` is called once, after the first round.
    ///
    /// # Errors
    /// When packets cannot be forwarded at all. Everything else is tried again.
    pub async fn run(mut self, ready: impl FnOnce()) -> Result<()> {
        links::enable_forwarding()?;
        let mut ready = Some(ready);
        loop {
            match self.session(&mut ready).await {
                Ok(()) => tracing::info!("the state engine closed the watch; listing again"),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "a round failed; trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn session(&mut self, ready: &mut Option<impl FnOnce()>) -> Result<()> {
        let zone = self.client.zone_id().await?;
        self.collects = self.links.belong_to(&zone).await?;
        if !self.collects {
            tracing::error!(
                zone,
                "there are taps of another database; they are walled in and left until the next boot"
            );
        }
        make_default_network(&self.client).await?;
        let (resources, revision) = Resources::list(&self.client).await?;
        self.resources = resources;
        let mut watch = self.client.watch(&KINDS, revision).await?;
        loop {
            self.round().await?;
            if let Some(ready) = ready.take() {
                ready();
            }
            if !self.wait(&mut watch).await? {
                return Ok(());
            }
        }
    }

    /// Waits for a change and takes in all that are there; false when the watch has ended.
    async fn wait(&mut self, watch: &mut Watch) -> Result<bool> {
        let Ok(first) = timeout(PERIOD, changed(watch)).await else {
            self.elements = None;
            self.taps.clear();
            return Ok(true);
        };
        let Some(first) = first? else { return Ok(false) };
        self.resources.apply(&first);
        while let Ok(next) = timeout(Duration::ZERO, changed(watch)).await {
            let Some(next) = next? else { return Ok(false) };
            self.resources.apply(&next);
        }
        Ok(true)
    }

    async fn round(&mut self) -> Result<()> {
        let world = World { host_subnets: self.links.host_subnets().await?, host_ports: listeners::read() };
        let mut plan = plan::plan(&self.resources, &world);
        self.links.ensure_networks(&plan.networks).await?;
        if let Err(error) = self.dns.serve(&plan.names, &plan.askers, self.dns_port).await {
            tracing::warn!(error = format!("{error:#}"), "a network has no name server");
        }
        // Rules before taps: a tap is never there without its walls.
        self.carry_out_rules(&plan).await?;
        self.carry_out_taps(&mut plan).await?;
        self.write_statuses(&plan).await
    }

    async fn carry_out_rules(&mut self, plan: &Plan) -> Result<()> {
        let wanted = firewall::elements(plan);
        let commands = match self.elements.take() {
            Some(current) => firewall::difference(&current, &wanted),
            None => Some(firewall::replace(&wanted)),
        };
        if let Some(commands) = commands {
            firewall::apply(&commands).await.context("cannot set the firewall's rules")?;
        }
        self.elements = Some(wanted);
        Ok(())
    }

    async fn carry_out_taps(&mut self, plan: &mut Plan) -> Result<()> {
        let bare = |tap: &TapPlan| TapPlan { ports: Vec::new(), ..tap.clone() };
        let changed: Vec<_> = plan.taps.iter().filter(|(name, tap)| self.taps.get(*name) != Some(&bare(tap))).collect();
        let gone = self.taps.keys().any(|name| !plan.taps.contains_key(name));
        if changed.is_empty() && !gone && !self.taps.is_empty() {
            return Ok(());
        }
        let present = self.links.taps().await?;
        let mine = |name: &String| self.collects || self.taps.contains_key(name);
        for name in present.keys().filter(|name| !plan.taps.contains_key(*name) && mine(name)) {
            self.links.delete(name).await?;
            tracing::info!(tap = %name, "tap removed");
        }
        self.taps.retain(|name, _| plan.taps.contains_key(name));
        for (name, tap) in changed {
            match self.links.ensure_tap(name, tap, present.get(name).copied()).await {
                Ok(()) => {
                    tracing::info!(tap = %name, address = %tap.address, uid = tap.uid, "tap ready");
                    self.taps.insert(name.clone(), bare(tap));
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(tap = %name, error, "tap cannot be made");
                    for status in plan.endpoint_status.values_mut().filter(|status| status.tap == *name) {
                        status.ready = false;
                        status.error = Some(error.clone());
                    }
                }
            }
        }
        Ok(())
    }

    async fn write_statuses(&mut self, plan: &Plan) -> Result<()> {
        write(&self.client, &mut self.resources.networks, &plan.network_status).await?;
        write(&self.client, &mut self.resources.endpoints, &plan.endpoint_status).await
    }
}

/// Writes the statuses that differ. Who changed a resource meanwhile causes an event, and with it another round.
async fn write<K: Kind>(
    client: &Client,
    resources: &mut BTreeMap<String, Resource<K>>,
    statuses: &BTreeMap<String, K::Status>,
) -> Result<()>
where
    K::Status: PartialEq,
{
    for (name, status) in statuses {
        let Some(resource) = resources.get_mut(name).filter(|resource| resource.status != *status) else { continue };
        match client.update_status(resource, status).await {
            Ok(written) => *resource = written,
            Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot write the status of {} {name}", K::NAME)),
        }
    }
    Ok(())
}

/// The next changes of what is watched; none when the watch has ended.
async fn changed(watch: &mut Watch) -> Result<Option<Changes>, ApiError> {
    loop {
        match watch.next().await? {
            Some(changes) if changes.events.is_empty() => {}
            other => return Ok(other),
        }
    }
}

async fn make_default_network(client: &Client) -> Result<()> {
    match client.get::<NetworkName>(DEFAULT_NETWORK).await {
        Ok(_) => return Ok(()),
        Err(error) if error.kind == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let id = zone::ids::random().context("cannot make an id")?;
    let spec = NetworkSpec { name: DEFAULT_NETWORK.into(), driver: "bridge".into(), ..NetworkSpec::default() };
    let operations = vec![
        Operation::create::<Network>(&id, &spec, None)?,
        Operation::create::<NetworkName>(DEFAULT_NETWORK, &id, None)?,
    ];
    client.transact(operations).await.context("cannot make the network bridge")?;
    tracing::info!(network = %id, "made the network bridge");
    Ok(())
}
