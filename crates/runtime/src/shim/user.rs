//! Who a container's process runs as: names looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! Runs inside the container's root, in the process that will become the container's. The files are outside input:
//! read inside the root only, bounded, and lines that make no sense are passed over.

use std::path::Path;

use crate::plan::ProcessPlan;
use crate::rooted::Rooted;

/// Longest passwd or group file that is read.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// Most supplementary groups taken from the image.
const GROUPS_MAX: usize = 1024;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

pub(super) fn identity(root: &Rooted, plan: &ProcessPlan) -> Result<Identity, String> {
    let read = |path: &str| {
        root.read(Path::new(path), FILE_MAX_BYTES).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    };
    resolve(plan, &read("etc/passwd"), &read("etc/group"))
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid, _) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next());
        let home = fields.next().unwrap_or("");
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// (name, number, members)
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or("")))
    })
}

fn resolve(plan: &ProcessPlan, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, group_name) = plan.user.split_once(':').unwrap_or((&plan.user, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let account = accounts(passwd).find(|a| match number {
        Some(uid) => a.uid == uid,
        None => a.name == user,
    });
    let uid = match (number, &account) {
        (Some(uid), _) => uid,
        (None, Some(account)) => account.uid,
        (None, None) => return Err(format!("unable to find user {user}: no matching entries in passwd file")),
    };
    let gid = match (plan.group, group_name) {
        (Some(gid), _) => gid,
        (None, "") => account.as_ref().map_or(0, |a| a.gid),
        (None, name) => match name.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => groups(group)
                .find(|g| g.0 == name)
                .map(|g| g.1)
                .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))?,
        },
    };
    let mut extra = plan.groups.clone();
    if let (false, Some(account)) = (plan.ignore_image_groups, &account) {
        let member = |list: &str| list.split(',').any(|m| m == account.name);
        extra.extend(groups(group).filter(|g| member(g.2)).map(|g| g.1).take(GROUPS_MAX));
    }
    if !extra.contains(&gid) {
        extra.push(gid);
    }
    extra.sort_unstable();
    extra.dedup();
    let home = account.map_or("", |a| a.home);
    Ok(Identity { uid, gid, groups: extra, home: if home.is_empty() { "/".to_owned() } else { home.to_owned() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001:App:/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:app,other\nbad:x:y:app\nwheel:x:10:root\n";

    #[track_caller]
    fn check(user: &str, expected: Result<(u32, u32, &[u32], &str), &str>) {
        let plan = ProcessPlan { user: user.to_owned(), ..ProcessPlan::default() };
        let found = resolve(&plan, PASSWD, GROUP);
        let found = found.as_ref().map(|i| (i.uid, i.gid, &i.groups[..], &i.home[..])).map_err(String::as_str);
        assert_eq!(found, expected, "{user}");
    }

    #[test]
    fn users_are_found_as_the_image_says() {
        check("", Ok((0, 0, &[0, 10], "/root")));
        check("app", Ok((1000, 1001, &[50, 1001], "/home/app")));
        check("1000", Ok((1000, 1001, &[50, 1001], "/home/app")));
        check("app:staff", Ok((1000, 50, &[50], "/home/app")));
        check("4711", Ok((4711, 0, &[0], "/")));
        check("4711:5", Ok((4711, 5, &[5], "/")));
        check("nobody", Err("unable to find user nobody: no matching entries in passwd file"));
        check("app:none", Err("unable to find group none: no matching entries in group file"));
    }
}
