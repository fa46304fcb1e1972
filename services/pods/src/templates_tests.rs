//! Templates in a directory of the test's own, without a maker.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

fn templates(dir: &Path, names: &[&str]) -> Templates {
    for name in names {
        fs::create_dir_all(dir.join("templates").join(name)).unwrap();
    }
    Templates::new(dir)
}

#[test]
fn whole_templates_are_found_again_and_drafts_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let templates = templates(dir.path(), &["512", ".128.new", "other"]);
    let sizes = templates.sizes.into_inner().unwrap();
    assert_eq!(sizes.into_iter().map(|(mib, size)| (mib, size.state)).collect::<Vec<_>>(), [(512, State::Ready)]);
}

#[test]
fn a_makers_end_is_nobody_elses() {
    let templates = Templates::new(Path::new("/nowhere"));
    let (tell, mut told) = oneshot::channel();
    *templates.maker.lock().unwrap() = Some(("kraud-template-64-1.service".into(), tell));
    let end = |unit: &str| UnitEnd { unit: unit.into(), result: "success".into() };
    assert!(!templates.ended(&end("kraud-pod-ab.service")));
    assert!(templates.ended(&end("kraud-template-64-2.service")));
    assert!(told.try_recv().is_err());
    assert!(templates.ended(&end("kraud-template-64-1.service")));
    assert_eq!(told.try_recv().unwrap(), "success");
}

#[test]
fn a_finished_template_is_read_only_and_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (draft, place) = (dir.path().join(".64.new"), dir.path().join("64"));
    fs::create_dir(&draft).unwrap();
    for name in FILES {
        fs::write(draft.join(name), [0; 16]).unwrap();
    }
    assert!(!is_whole(&draft.join("state")) && !is_whole(&draft.join("none")));
    fs::write(draft.join("state"), "kraudtp2 and more").unwrap();
    assert!(is_whole(&draft.join("state")));
    finish(&draft, &place).unwrap();
    assert_eq!(fs::metadata(place.join("mem")).unwrap().permissions().mode() & 0o777, 0o444);
    assert!(!draft.exists());
}

#[test]
fn one_that_does_not_fit_is_removed_and_made_again_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let templates = templates(dir.path(), &["512"]);
    for try_ in 1..=MAX_TRIES {
        assert_eq!(templates.refused(512), try_ <= MAX_TRIES, "{try_}");
        assert!(!templates.place(512).exists());
        assert!(!templates.refused(512), "it is being made");
        templates.sizes.lock().unwrap().get_mut(&512).unwrap().state = State::Ready;
    }
    assert!(!templates.refused(512) && !templates.refused(64));
}

#[tokio::test]
async fn nothing_is_made_while_a_pod_starts() {
    let templates = Arc::new(Templates::new(Path::new("/nowhere")));
    let pod = PodId::new("ab");
    templates.starts(&pod, true);
    let (done, waits) = (Arc::new(AtomicBool::new(false)), Arc::clone(&templates));
    let told = Arc::clone(&done);
    let task = tokio::spawn(async move {
        waits.calm().await;
        told.store(true, Ordering::SeqCst);
    });
    tokio::time::timeout(CALM + CALM / 4, std::future::pending::<()>()).await.unwrap_err();
    assert!(!done.load(Ordering::SeqCst));
    templates.starts(&pod, false);
    tokio::time::timeout(CALM * 20, task).await.unwrap().unwrap();
}

#[test]
fn a_pod_that_a_template_cannot_serve_boots() {
    assert!(serves(&bundle(512)));
    for change in [
        (|b: &mut Bundle| b.vcpus = 2) as fn(&mut Bundle),
        |b| b.memory_mib = 1 << 20,
        |b| b.console = Some("c".into()),
        |b| b.spare_slots = 13,
    ] {
        let mut bundle = bundle(512);
        change(&mut bundle);
        assert!(!serves(&bundle), "{bundle:?}");
    }
}
