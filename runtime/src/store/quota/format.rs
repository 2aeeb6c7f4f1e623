//! Whether the kernel can read the quota files that ext4 would be given.

use std::fs;
use std::path::Path;

/// Whether the kernel has the format of quotas that `tune2fs -O quota` writes, without which the
/// file system can't be mounted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    There,
    Missing,
    /// Nothing that can be read tells.
    Unknown,
}

impl Format {
    /// Looks in what a distribution installs with its kernel.
    pub(super) fn of_this_kernel() -> Self {
        Self::of(Path::new("/"), &release())
    }

    fn of(root: &Path, release: &str) -> Self {
        let text = |path: String| fs::read_to_string(root.join(path)).unwrap_or_default();
        match in_configuration(&text(format!("boot/config-{release}"))) {
            Self::Unknown => {}
            known => return known,
        }
        // The kernel's own modules, and those that can be loaded.
        let lists =
            ["builtin", "dep"].map(|of| text(format!("lib/modules/{release}/modules.{of}")));
        match lists.iter().any(|list| list.contains("/quota_v2.ko")) {
            true => Self::There,
            false => Self::Unknown,
        }
    }
}

fn release() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

fn in_configuration(text: &str) -> Format {
    let says = |line: &str| text.lines().any(|other| other == line);
    match () {
        () if says("CONFIG_QFMT_V2=y") || says("CONFIG_QFMT_V2=m") => Format::There,
        () if says("# CONFIG_QFMT_V2 is not set") => Format::Missing,
        () => Format::Unknown,
    }
}

/// What to do for quotas on ext4.
pub(super) fn remedy(format: Format) -> String {
    const MOUNT: &str = "root has to unmount it, switch quotas on by `tune2fs -O project,quota \
                         DEVICE`, and mount it by `mount -o prjquota DEVICE DIRECTORY` (`findmnt` \
                         lists both)";
    const MEMORY: &str = "have the upper in memory";
    match format {
        Format::There => format!("{MOUNT}; or {MEMORY}"),
        Format::Missing => format!(
            "{MEMORY}: this kernel has no CONFIG_QFMT_V2, and would not mount an ext4 with quotas"
        ),
        Format::Unknown => format!(
            "{MEMORY}; or make sure that the kernel has CONFIG_QFMT_V2, without which it does not \
             mount an ext4 with quotas any more (`zcat /proc/config.gz | grep QFMT_V2` says =y or \
             =m); then {MOUNT}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Format, remedy};

    #[test]
    fn quotas_are_advised_only_where_the_kernel_is_known_to_read_them() {
        let root = std::env::temp_dir().join(format!("adl-format-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(Format::of(&root, "6.1"), Format::Unknown);
        write("boot/config-6.1", "# CONFIG_QFMT_V1 is not set\n# CONFIG_QFMT_V2 is not set\n");
        assert_eq!(Format::of(&root, "6.1"), Format::Missing);
        write("boot/config-6.2", "CONFIG_QFMT_V2=m\n");
        assert_eq!(Format::of(&root, "6.2"), Format::There);
        write("lib/modules/6.3/modules.builtin", "kernel/fs/ext4/ext4.ko\n");
        assert_eq!(Format::of(&root, "6.3"), Format::Unknown);
        write("lib/modules/6.3/modules.dep", "kernel/fs/quota/quota_v2.ko.xz: x.ko\n");
        assert_eq!(Format::of(&root, "6.3"), Format::There);
        fs::remove_dir_all(&root).unwrap();
        assert!(remedy(Format::There).starts_with("root has to"));
        // What would make the machine's file system unusable is not the first thing that is read.
        assert!(!remedy(Format::Missing).contains("tune2fs"));
        let unknown = remedy(Format::Unknown);
        assert!(unknown.find("CONFIG_QFMT_V2").unwrap() < unknown.find("tune2fs").unwrap());
    }
}
