//! Sources of volumes that pods and persistent volumes share: disks and file systems of the network.

use meta::{At, Errors, Value};

use crate::check;

/// Fields that each kind of source must have.
const NEEDED: &[(&str, &[&str])] = &[
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("rbd", &["monitors", "image"]),
    ("cephfs", &["monitors"]),
    ("cinder", &["volumeID"]),
    ("quobyte", &["registry", "volume"]),
    ("vsphereVolume", &["volumePath"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("flexVolume", &["driver"]),
];

/// Checks one source; whether `kind` is one that this file knows.
pub fn check(kind: &str, source: &At<'_>, errors: &mut Errors) -> bool {
    let known = NEEDED.iter().find(|(name, _)| *name == kind);
    if let Some((_, fields)) = known {
        for field in *fields {
            check::required(&source.field(field), errors);
        }
    }
    match kind {
        "gcePersistentDisk" | "awsElasticBlockStore" => check::within(&source.field("partition"), 0, 255, errors),
        "nfs" => {
            let path = source.field("path");
            if !path.text().starts_with('/') {
                errors.invalid(&path, "must be an absolute path");
            }
        }
        "iscsi" => check_iscsi(source, errors),
        "fc" => check_fc(source, errors),
        "flocker" => {
            let (name, uuid) = (source.field("datasetName"), source.field("datasetUUID"));
            if name.is_empty() && uuid.is_empty() {
                errors.required(&source.path, "one of datasetName and datasetUUID is required");
            }
            if !name.is_empty() && !uuid.is_empty() {
                errors.invalid_value(
                    &source.path,
                    "resource",
                    "datasetName and datasetUUID can not be specified simultaneously",
                );
            }
            if name.text().contains('/') {
                errors.invalid(&name, "must not contain '/'");
            }
        }
        "azureDisk" => {
            check::set_word(&source.field("cachingMode"), &["None", "ReadOnly", "ReadWrite"], errors);
            check::set_word(&source.field("kind"), &["Dedicated", "Managed", "Shared"], errors);
        }
        "storageos" => {
            check::required(&source.field("volumeName"), errors);
        }
        "hostPath" => check_host_path(source, errors),
        _ => return known.is_some(),
    }
    true
}

pub fn check_host_path(source: &At<'_>, errors: &mut Errors) {
    const TYPES: &[&str] =
        &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let path = source.field("path");
    if path.is_empty() {
        errors.required(&path.path, "");
        return;
    }
    check::no_backsteps(&path, errors);
    check::set_word(&source.field("type"), TYPES, errors);
}

fn check_iscsi(source: &At<'_>, errors: &mut Errors) {
    let iqn = source.field("iqn");
    if !iqn.is_empty() && !["iqn", "eui", "naa"].iter().any(|prefix| iqn.text().starts_with(prefix)) {
        errors.invalid(&iqn, "must be valid format");
    }
    check::within(&source.field("lun"), 0, 255, errors);
    let chap = source.field("chapAuthDiscovery").value.is_true() || source.field("chapAuthSession").value.is_true();
    if chap && !source.field("secretRef").is_set() {
        errors.required(&source.field("secretRef").path, "");
    }
}

fn check_fc(source: &At<'_>, errors: &mut Errors) {
    let (names, ids) = (source.field("targetWWNs"), source.field("wwids"));
    match (names.is_empty(), ids.is_empty()) {
        (true, true) => errors.required(&names.path, "must specify either targetWWNs or wwids, but not both"),
        (false, false) => errors.invalid(&names, "targetWWNs and wwids can not be specified simultaneously"),
        (false, true) => match source.field("lun").value {
            Value::Null => errors.required(&source.field("lun").path, "lun is required if targetWWNs is specified"),
            _ => check::within(&source.field("lun"), 0, 255, errors),
        },
        (true, false) => {}
    }
}
