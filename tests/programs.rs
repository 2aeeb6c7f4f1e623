//! Real programs do inside what they do outside.

use adl_runtime::Image;

use crate::harness::{Home, Need, needs};
use crate::images;

#[test]
fn users_are_made_changed_and_become_inside() {
    if !needs(&[Need::Debian, Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox_of(Image::directory(images::debian().unwrap()));
    let script = "set -e
        useradd --create-home --shell /bin/sh alice
        groupadd team; usermod --append --groups team alice
        echo alice:secret | chpasswd
        su alice -c 'id -un; id -Gn'
        su - alice -c 'pwd; echo $USER'
        runuser -u alice -- id -un
        passwd --status alice | cut -d' ' -f1-2
        userdel alice; groupdel team
        ! id alice 2> /dev/null";
    let output = sandbox.shell(script).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stderr, b"", "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(told, "alice\nalice team\n/home/alice\nalice\nalice\nalice P\n");
}
