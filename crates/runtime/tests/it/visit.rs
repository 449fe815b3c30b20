//! A command beside the agent, on the same images.

use runtime::testing::{Compression, TestImage};
use runtime::{ContainerSpec, Error, ImageStore, RegistryConfig, State};

use crate::support::{IMAGE, Lab};

#[tokio::test(flavor = "multi_thread")]
async fn a_visitor_and_the_agent_see_what_the_other_does() {
    let lab = Lab::new().await;
    let root = lab.dir.path().join("root");
    let visitor = ImageStore::open(&root, RegistryConfig::default()).unwrap();
    assert_eq!(visitor.list().len(), 1);

    // Loaded by the visitor, known to the agent at once.
    let archive = lab.dir.path().join("other.tar");
    let config = serde_json::json!({"Cmd": ["true"]});
    let other = TestImage { compression: Compression::None, config, ..TestImage::busybox() };
    other.write_oci(&archive, "registry.test/other:1").unwrap();
    let loaded = visitor.load(&archive).await.unwrap();
    assert_eq!(loaded[0].tags, ["registry.test/other:1"]);
    assert!(lab.runtime.image("registry.test/other:1").await.unwrap().is_some());
    // Removed by the agent, gone for the visitor.
    lab.runtime.remove_image("registry.test/other:1").await.unwrap();
    assert_eq!(visitor.list().len(), 1);

    // Removed by the visitor while a container runs of it: the name goes, what the container uses stays.
    let sandbox = lab.runtime.run_sandbox(lab.sandbox_spec("a")).await.unwrap();
    let mut spec = ContainerSpec::new(&sandbox.id, "main", IMAGE);
    spec.command = vec!["sleep".into(), "1000".into()];
    let id = lab.runtime.create(spec).await.unwrap();
    lab.runtime.start(&id).await.unwrap();
    visitor.remove(IMAGE).unwrap();
    assert!(lab.runtime.image(IMAGE).await.unwrap().is_none());
    let output = lab.runtime.exec_sync(&id, vec!["ls".into(), "/bin/busybox".into()], 10_000).await.unwrap();
    assert_eq!(output.stdout.as_ref(), b"/bin/busybox\n");
    assert_eq!(lab.runtime.container(&id).await.unwrap().state, State::Running);
    lab.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    assert!(visitor.list().is_empty());
    assert!(matches!(visitor.remove(IMAGE), Err(Error::ImageMissing { .. })));
    drop(visitor);
    assert_eq!(std::fs::read_dir(root.join("images/ingest")).unwrap().count(), 0);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_by_several_at_once_lose_nothing() {
    let lab = Lab::empty().await;
    let root = lab.dir.path().join("root");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..6 {
        let archive = lab.dir.path().join(format!("{number}.tar"));
        let image = TestImage { compression: Compression::None, ..TestImage::busybox() };
        image.write_oci(&archive, &format!("registry.test/many:{number}")).unwrap();
        let (runtime, root) = (lab.runtime.clone(), root.clone());
        tasks.spawn(async move {
            match number % 2 {
                0 => runtime.load(archive).await.map(|_| ()),
                _ => ImageStore::open(&root, RegistryConfig::default()).unwrap().load(&archive).await.map(|_| ()),
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let images = lab.runtime.images().await.unwrap();
    assert_eq!(images.iter().map(|image| image.tags.len()).sum::<usize>(), 6);
}
