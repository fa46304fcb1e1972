//! What the machine decides, case by case, and as whole lives played through.

use super::*;
use zone::log::{Data, Record};
use zone::{ContainerId, ImageId};

const ID: &str = "4f5c";

fn spec(desired: Desired, starts: u64) -> PodSpec {
    let container = zone::pod::ContainerSpec {
        id: ContainerId::new(ID),
        name: "web".into(),
        image: ImageId::new("sha256:1"),
        ..Default::default()
    };
    PodSpec {
        containers: vec![container],
        desired,
        starts,
        files_asks: 0,
        restart_policy: RestartPolicy::No,
        auto_remove: false,
        stop_grace_s: 10,
        memory_mib: 128,
        vcpus: 1,
        disk_read: zone::bundle::Rate::default(),
        disk_write: zone::bundle::Rate::default(),
        cpu: zone::pod::CpuLimits::default(),
        endpoints: Vec::new(),
        hostname: "h".into(),
        domainname: String::new(),
        link_hosts: Vec::new(),
        extra_hosts: Vec::new(),
        dns: Vec::new(),
        dns_search: Vec::new(),
        dns_options: Vec::new(),
    }
}

fn status(phase: Phase) -> PodStatus {
    PodStatus { phase, uid: Some(200_000), starts: 1, run: 1, ..PodStatus::default() }
}

fn facts(unit: Unit) -> Facts {
    Facts { prepared: true, unit, dirty: true, limits: Some(CpuLimits::default()), ..Facts::default() }
}

fn said(facts: &mut Facts, data: Data) {
    facts.log.take(&Record { run: 1, number: 0, time_ns: 77, container: ID.into(), data });
}

fn exited(code: i32) -> Data {
    Data::Exited { code, oom_killed: false }
}

#[track_caller]
fn new_status(step: Step) -> PodStatus {
    match step {
        Step::Status(status) => *status,
        other => panic!("not a status: {other:?}"),
    }
}

#[track_caller]
fn action(step: &Step) -> Action {
    match step {
        Step::Act(action) => *action,
        other => panic!("not an action: {other:?}"),
    }
}

/// Goes on until there is something to wait for; the actions on the way, and the last status. Launching, stopping and
/// cleaning up succeed at once.
fn settle_down(spec: &PodSpec, status: &mut PodStatus, facts: &mut Facts, now: u64) -> Vec<Action> {
    let mut actions = Vec::new();
    for _ in 0..32 {
        match decide(spec, status, facts, now) {
            Step::Status(new) => {
                let begins = new.phase == Phase::Starting && status.phase != Phase::Starting;
                *status = *new;
                if begins {
                    facts.begin_run();
                }
            }
            Step::Act(action) => {
                actions.push(action);
                match action {
                    Action::AssignUid => status.uid = Some(200_001),
                    Action::Prepare => facts.prepared = true,
                    Action::Limit => facts.limits = Some(spec.cpu),
                    Action::Launch | Action::OpenFiles => {
                        facts.limits = Some(spec.cpu);
                        facts.unit = Unit::Alive;
                        facts.dirty = true;
                    }
                    Action::Signal | Action::CloseFiles => facts.stop = Stop::Asked { at_ms: now },
                    Action::Kill => facts.stop = Stop::Killed { at_ms: now },
                    Action::CleanUp => facts.dirty = false,
                    Action::Remove => return actions,
                }
            }
            Step::Wait(_) => return actions,
        }
    }
    panic!("no rest after {actions:?} in {status:?}");
}

#[test]
fn a_new_pod_gets_its_uid_and_files_and_then_is_created() {
    let (mut status, mut facts) = (PodStatus::default(), Facts::default());
    let actions = settle_down(&spec(Desired::Stopped, 0), &mut status, &mut facts, 0);
    assert_eq!(actions, [Action::AssignUid, Action::Prepare]);
    assert_eq!((status.phase, status.uid), (Phase::Created, Some(200_001)));
}

#[test]
fn a_run_from_start_to_exit_tells_each_phase() {
    let spec = spec(Desired::Running, 1);
    let mut status = PodStatus { phase: Phase::Created, uid: Some(1), ..PodStatus::default() };
    let mut facts = Facts { prepared: true, ..Facts::default() };
    assert_eq!(settle_down(&spec, &mut status, &mut facts, 0), [Action::Launch]);
    assert_eq!((status.phase, status.starts, status.run), (Phase::Starting, 1, 1));
    said(&mut facts, Data::Started { pid: 2 });
    assert!(settle_down(&spec, &mut status, &mut facts, 0).is_empty());
    assert_eq!((status.phase, status.containers[&ContainerId::new(ID)].pid), (Phase::Running, 2));
    said(&mut facts, exited(3));
    assert!(settle_down(&spec, &mut status, &mut facts, 0).is_empty());
    let container = &status.containers[&ContainerId::new(ID)];
    assert_eq!((status.phase, container.exit_code, container.finished_ns, container.pid), (Phase::Exited, 3, 77, 0));
    facts.unit = Unit::Ended { result: "success".into() };
    assert_eq!(settle_down(&spec, &mut status, &mut facts, 0), [Action::CleanUp]);
    assert_eq!(status.phase, Phase::Exited);
}

#[test]
fn the_status_says_starting_before_anything_is_launched() {
    let mut before = status(Phase::Exited);
    before.starts = 0;
    let new = new_status(decide(&spec(Desired::Running, 1), &before, &Facts { prepared: true, ..Facts::default() }, 0));
    assert_eq!((new.phase, new.run), (Phase::Starting, 2));
}

#[test]
fn a_run_number_that_the_log_knows_is_never_used_again() {
    let mut before = status(Phase::Created);
    before.starts = 0;
    let facts = Facts { prepared: true, last_run: 9, ..Facts::default() };
    assert_eq!(new_status(decide(&spec(Desired::Running, 1), &before, &facts, 0)).run, 10);
}

#[test]
fn a_program_that_is_not_there_is_a_failed_start_and_not_tried_again() {
    let mut spec = spec(Desired::Running, 1);
    spec.restart_policy = RestartPolicy::Always;
    let mut facts = facts(Unit::Alive);
    said(&mut facts, Data::Failed(StartError { kind: StartErrorKind::NotFound, message: "no such file".into() }));
    let new = new_status(decide(&spec, &status(Phase::Starting), &facts, 0));
    let container = &new.containers[&ContainerId::new(ID)];
    assert_eq!((new.phase, container.exit_code), (Phase::Exited, 127));
    assert_eq!(container.error.as_ref().map(|e| e.message.as_str()), Some("no such file"));
}

#[test]
fn a_unit_that_ends_without_a_word_has_the_code_that_its_end_deserves() {
    let killed = Stop::Killed { at_ms: 0 };
    for (result, stop, code, oom) in
        [("success", Stop::No, 255, false), ("oom-kill", Stop::No, 137, true), ("signal", killed, 137, false)]
    {
        let mut facts = facts(Unit::Ended { result: result.into() });
        said(&mut facts, Data::Started { pid: 2 });
        facts.stop = stop;
        let new = new_status(decide(&spec(Desired::Running, 1), &status(Phase::Running), &facts, 0));
        let container = &new.containers[&ContainerId::new(ID)];
        assert_eq!((new.phase, container.exit_code, container.oom_killed), (Phase::Exited, code, oom), "{result}");
        assert!(container.error.is_none(), "{result}");
    }
}

#[test]
fn a_monitor_that_cannot_be_started_is_a_failed_start_with_the_reason() {
    let facts = facts(Unit::Failed { message: "no kvm".into() });
    let new = new_status(decide(&spec(Desired::Running, 1), &status(Phase::Starting), &facts, 0));
    let error = new.containers[&ContainerId::new(ID)].error.clone().unwrap();
    assert_eq!((new.phase, error.message.as_str()), (Phase::Exited, "no kvm"));
}

#[test]
fn a_stop_signals_waits_the_grace_and_then_kills() {
    let spec = spec(Desired::Stopped, 1);
    let (mut status, mut facts) = (status(Phase::Running), facts(Unit::Alive));
    said(&mut facts, Data::Started { pid: 2 });
    assert_eq!(settle_down(&spec, &mut status, &mut facts, 1000), [Action::Signal]);
    assert_eq!(status.phase, Phase::Stopping);
    assert!(matches!(decide(&spec, &status, &facts, 10_999), Step::Wait(Some(11_000))));
    assert_eq!(action(&decide(&spec, &status, &facts, 11_000)), Action::Kill);
    facts.stop = Stop::Killed { at_ms: 11_000 };
    assert!(matches!(decide(&spec, &status, &facts, 11_001), Step::Wait(Some(_))));
}

#[test]
fn a_grace_of_zero_kills_at_once_and_a_negative_one_never() {
    let mut spec = spec(Desired::Stopped, 1);
    let mut facts = facts(Unit::Alive);
    said(&mut facts, Data::Started { pid: 2 });
    let mut stopping = status(Phase::Stopping);
    settle_down(&spec, &mut stopping, &mut facts.clone(), 0);
    spec.stop_grace_s = 0;
    assert_eq!(action(&decide(&spec, &stopping, &facts, 0)), Action::Kill);
    spec.stop_grace_s = -1;
    facts.stop = Stop::Asked { at_ms: 0 };
    assert!(matches!(decide(&spec, &stopping, &facts, u64::MAX / 2), Step::Wait(None)));
}

#[test]
fn restart_policies_decide_by_code_count_and_what_the_user_wants() {
    let on_failure = |max_retries| RestartPolicy::OnFailure { max_retries };
    for (policy, desired, code, count, again) in [
        (RestartPolicy::No, Desired::Running, 1, 0, false),
        (RestartPolicy::Always, Desired::Running, 0, 0, true),
        (RestartPolicy::Always, Desired::Stopped, 0, 0, false),
        (RestartPolicy::UnlessStopped, Desired::Running, 0, 5, true),
        (on_failure(0), Desired::Running, 0, 0, false),
        (on_failure(0), Desired::Running, 1, 99, true),
        (on_failure(2), Desired::Running, 1, 1, true),
        (on_failure(2), Desired::Running, 1, 2, false),
    ] {
        let mut spec = spec(desired, 1);
        spec.restart_policy = policy;
        let mut facts = facts(Unit::Alive);
        said(&mut facts, Data::Started { pid: 2 });
        said(&mut facts, exited(code));
        let mut before = status(Phase::Running);
        before.restart_count = count;
        let phase = new_status(decide(&spec, &before, &facts, 0)).phase;
        assert_eq!(phase == Phase::Restarting, again, "{policy:?} {desired:?} code {code} count {count}");
    }
}

#[test]
fn a_restart_waits_for_its_back_off_and_for_the_old_unit() {
    let mut spec = spec(Desired::Running, 1);
    spec.restart_policy = RestartPolicy::Always;
    let mut facts = facts(Unit::Alive);
    facts.restart_ms = Some(100);
    let mut now = status(Phase::Restarting);
    assert!(matches!(decide(&spec, &now, &facts, 200), Step::Wait(Some(_))), "the unit is still there");
    facts.unit = Unit::Ended { result: "success".into() };
    facts.dirty = false;
    assert!(matches!(decide(&spec, &now, &facts, 99), Step::Wait(Some(100))));
    assert_eq!(settle_down(&spec, &mut now, &mut facts, 100), [Action::Launch]);
    assert_eq!((now.phase, now.run, now.restart_count, now.starts), (Phase::Starting, 2, 1, 1));
}

#[test]
fn back_off_doubles_to_a_minute_and_starts_anew_after_ten_seconds() {
    let mut backoff = 0;
    let mut seen = Vec::new();
    for _ in 0..12 {
        backoff = next_backoff(backoff, 5);
        seen.push(backoff);
    }
    assert_eq!(seen[..4], [100, 200, 400, 800]);
    assert_eq!(seen[11], 60_000);
    assert_eq!(next_backoff(60_000, 10_000), 100);
}

#[test]
fn after_a_boot_what_ran_and_should_starts_again_and_the_rest_is_exited() {
    for (policy, desired, again) in [
        (RestartPolicy::Always, Desired::Running, true),
        (RestartPolicy::UnlessStopped, Desired::Running, true),
        (RestartPolicy::UnlessStopped, Desired::Stopped, false),
        (RestartPolicy::No, Desired::Running, false),
    ] {
        let mut spec = spec(desired, 1);
        spec.restart_policy = policy;
        let mut now = status(Phase::Running);
        let mut facts = Facts { prepared: true, booted: true, ..Facts::default() };
        let actions = settle_down(&spec, &mut now, &mut facts, 0);
        assert_eq!(actions == [Action::Launch], again, "{policy:?} {desired:?}: {actions:?}");
        assert_eq!(now.phase == Phase::Starting, again, "{policy:?} {desired:?}");
        if !again {
            assert_eq!(now.containers[&ContainerId::new(ID)].exit_code, 255);
        }
    }
}

#[test]
fn a_run_whose_status_a_power_cut_took_has_ended_and_does_not_start_by_itself() {
    let spec = spec(Desired::Running, 1);
    let mut now = PodStatus { phase: Phase::Created, uid: Some(200_000), ..PodStatus::default() };
    let mut facts = Facts { prepared: true, booted: true, last_run: 1, ..Facts::default() };
    let actions = settle_down(&spec, &mut now, &mut facts, 0);
    assert!(actions.is_empty(), "{actions:?}");
    assert_eq!((now.phase, now.run, now.containers[&ContainerId::new(ID)].exit_code), (Phase::Exited, 1, 255));
}

#[test]
fn killed_between_status_and_launch_the_service_launches_when_it_comes_back() {
    let facts = Facts { prepared: true, ..Facts::default() };
    assert_eq!(action(&decide(&spec(Desired::Running, 1), &status(Phase::Starting), &facts, 0)), Action::Launch);
}

#[test]
fn killed_while_the_pod_ran_the_service_finds_the_exit_in_the_log() {
    let mut facts = facts(Unit::Absent);
    said(&mut facts, Data::Started { pid: 2 });
    said(&mut facts, exited(7));
    let new = new_status(decide(&spec(Desired::Running, 1), &status(Phase::Running), &facts, 0));
    assert_eq!((new.phase, new.containers[&ContainerId::new(ID)].exit_code), (Phase::Exited, 7));
}

#[test]
fn a_start_waits_for_what_it_needs_and_fails_with_the_reason_in_the_end() {
    let spec = spec(Desired::Running, 1);
    let mut facts = Facts { prepared: true, waiting_since_ms: Some(0), ..Facts::default() };
    facts.needs = Needs::Waiting("volume data is not ready".into());
    let mut now = status(Phase::Starting);
    assert!(settle_down(&spec, &mut now, &mut facts, 10).is_empty());
    assert_eq!(now.message.as_deref(), Some("volume data is not ready"));
    let end = new_status(decide(&spec, &now, &facts, NEEDS_PATIENCE_MS));
    assert_eq!(end.phase, Phase::Exited);
    assert!(end.containers[&ContainerId::new(ID)].error.as_ref().unwrap().message.contains("volume data"));
    facts.needs = Needs::Failed("port is already allocated".into());
    assert_eq!(new_status(decide(&spec, &now, &facts, 11)).message.as_deref(), Some("port is already allocated"));
    facts.needs = Needs::Ready;
    assert_eq!(action(&decide(&spec, &now, &facts, 11)), Action::Launch);
}

#[test]
fn a_pod_with_rm_is_removed_after_its_exit_and_with_volumes_only_when_the_unit_is_gone() {
    let mut spec = spec(Desired::Running, 1);
    spec.auto_remove = true;
    let running = status(Phase::Running);
    let mut facts = facts(Unit::Alive);
    said(&mut facts, exited(0));
    let done = new_status(decide(&spec, &running, &facts, 0));
    assert_eq!(done.phase, Phase::Exited);
    // Nothing that its guest still writes matters to anybody.
    assert_eq!(action(&decide(&spec, &done, &facts, 0)), Action::Remove);
    let volume = zone::VolumeName::new("data");
    let (target, subpath) = ("/v".to_owned(), String::new());
    let mount = Mount::Volume { volume, target, read_only: false, no_copy: false, subpath, anonymous: false };
    spec.containers[0].mounts.push(mount);
    assert!(matches!(decide(&spec, &done, &facts, 0), Step::Wait(Some(LINGER_MS))));
    facts.unit = Unit::Ended { result: "success".into() };
    assert_eq!(action(&decide(&spec, &done, &facts, 0)), Action::CleanUp);
    facts.dirty = false;
    assert_eq!(action(&decide(&spec, &done, &facts, 0)), Action::Remove);
}

#[test]
fn a_guest_that_does_not_power_off_is_killed() {
    let mut facts = facts(Unit::Alive);
    facts.ended_ms = Some(0);
    let now = status(Phase::Exited);
    assert!(matches!(decide(&spec(Desired::Running, 1), &now, &facts, 0), Step::Wait(Some(LINGER_MS))));
    assert_eq!(action(&decide(&spec(Desired::Running, 1), &now, &facts, LINGER_MS)), Action::Kill);
}

#[test]
fn a_start_while_the_stop_goes_on_begins_after_the_exit() {
    let spec = spec(Desired::Running, 2);
    let (mut now, mut facts) = (status(Phase::Stopping), facts(Unit::Alive));
    facts.stop = Stop::Asked { at_ms: 0 };
    said(&mut facts, Data::Started { pid: 2 });
    settle_down(&spec, &mut now, &mut facts, 0);
    assert_eq!((now.phase, now.starts), (Phase::Stopping, 1));
    said(&mut facts, exited(0));
    facts.unit = Unit::Ended { result: "success".into() };
    assert_eq!(settle_down(&spec, &mut now, &mut facts, 0), [Action::CleanUp, Action::Launch]);
    assert_eq!((now.phase, now.starts, now.run, now.restart_count), (Phase::Starting, 2, 2, 0));
}

#[test]
fn an_exit_before_its_start_was_seen_counts_as_both() {
    let mut facts = facts(Unit::Alive);
    said(&mut facts, Data::Started { pid: 2 });
    said(&mut facts, exited(0));
    let new = new_status(decide(&spec(Desired::Running, 1), &status(Phase::Starting), &facts, 0));
    let container = &new.containers[&ContainerId::new(ID)];
    assert_eq!((new.phase, container.started_ns), (Phase::Exited, 77));
    assert!(container.error.is_none());
}

/// Facts of a pod at rest with nothing left of a run.
fn clean() -> Facts {
    Facts { prepared: true, ..Facts::default() }
}

#[test]
fn files_are_reached_through_a_helper_that_is_gone_before_a_start() {
    let mut wanted = spec(Desired::Stopped, 1);
    wanted.files_asks = 3;
    let mut facts = clean();
    let mut now = new_status(decide(&wanted, &status(Phase::Exited), &facts, 0));
    assert!(now.files.up && now.files.asks == 0 && now.phase == Phase::Exited, "{now:?}");
    facts.files_fresh = true;
    assert_eq!(action(&decide(&wanted, &now, &facts, 0)), Action::OpenFiles);
    (facts.files_fresh, facts.unit, facts.dirty) = (false, Unit::Alive, true);
    now = new_status(decide(&wanted, &now, &facts, 0));
    assert_eq!(now.files.asks, 3);
    assert!(matches!(decide(&wanted, &now, &facts, 1_000_000), Step::Wait(None)), "it ends by itself");

    (wanted.desired, wanted.starts) = (Desired::Running, 2);
    assert_eq!(action(&decide(&wanted, &now, &facts, 5)), Action::CloseFiles);
    facts.stop = Stop::Asked { at_ms: 5 };
    assert!(matches!(decide(&wanted, &now, &facts, 6), Step::Wait(Some(at)) if at == 5 + FILES_PATIENCE_MS));
    assert_eq!(action(&decide(&wanted, &now, &facts, 5 + FILES_PATIENCE_MS)), Action::Kill);
    facts.unit = Unit::Ended { result: "success".into() };
    now = new_status(decide(&wanted, &now, &facts, 7));
    assert!(!now.files.up);
    assert_eq!(action(&decide(&wanted, &now, &facts, 7)), Action::CleanUp);
    facts.dirty = false;
    assert_eq!(new_status(decide(&wanted, &now, &facts, 7)).phase, Phase::Starting);
}

#[test]
fn a_helper_that_cannot_start_answers_with_the_reason_and_is_not_tried_again() {
    let mut wanted = spec(Desired::Stopped, 1);
    wanted.files_asks = 1;
    let facts = Facts { needs: Needs::Failed("no such volume".into()), ..clean() };
    let now = new_status(decide(&wanted, &status(Phase::Exited), &facts, 0));
    assert_eq!((now.files.asks, now.files.up, now.files.error.as_deref()), (1, false, Some("no such volume")));
    assert!(matches!(decide(&wanted, &now, &facts, 0), Step::Wait(None)));

    let up = new_status(decide(&wanted, &status(Phase::Exited), &clean(), 0));
    let facts = Facts { unit: Unit::Failed { message: "no kvm".into() }, dirty: true, ..clean() };
    let now = new_status(decide(&wanted, &up, &facts, 0));
    assert_eq!((now.files.asks, now.files.up, now.files.error.as_deref()), (1, false, Some("no kvm")));
}

#[test]
fn a_helper_that_another_process_had_announced_and_not_started_is_given_up() {
    let mut wanted = spec(Desired::Stopped, 1);
    wanted.files_asks = 1;
    let up = new_status(decide(&wanted, &status(Phase::Exited), &clean(), 0));
    assert!(!new_status(decide(&wanted, &up, &clean(), 0)).files.up);
}

#[test]
fn a_start_whose_files_cannot_be_made_fails_at_once_and_a_later_one_may_not() {
    let mut facts = Facts { prepare_again: Some((1000, "the pool is full".into())), ..Facts::default() };
    let created = PodStatus { starts: 0, run: 0, ..status(Phase::Pending) };
    assert!(matches!(decide(&spec(Desired::Stopped, 0), &created, &facts, 10), Step::Wait(Some(1000))));
    let mut wanted = spec(Desired::Running, 1);
    let failed = new_status(decide(&wanted, &created, &facts, 10));
    assert_eq!((failed.phase, failed.starts, failed.message.as_deref()), (Phase::Exited, 1, Some("the pool is full")));
    assert_eq!(failed.containers[&ContainerId::new(ID)].exit_code, 128);
    assert!(matches!(decide(&wanted, &failed, &facts, 1000), Step::Act(Action::Prepare)), "it is not tried again");
    wanted.auto_remove = true;
    assert!(matches!(decide(&wanted, &failed, &facts, 10), Step::Act(Action::Remove)));
    wanted = spec(Desired::Running, 2);
    facts = Facts { prepared: true, ..Facts::default() };
    assert_eq!(new_status(decide(&wanted, &failed, &facts, 10)).phase, Phase::Starting);
}
