export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@b
export GIT_AUTHOR_DATE='2024-01-01T00:00:00Z' GIT_COMMITTER_DATE='2024-01-01T00:00:00Z'
export GIT_CONFIG_NOSYSTEM=1 GIT_PAGER=cat
git config --global init.defaultBranch main
git config --global advice.detachedHead false
check version git --version
check init git init one
cd one || exit
commit() { git add -A && git commit -m "$1"; }
seq 1000 > numbers && ln -s numbers link && printf '#!/bin/sh\n' > run && chmod +x run
check commit commit first
check 'a branch' git checkout -b side
sed -i 's/^500$/five hundred/' numbers
check 'commit on it' commit side
check 'and back' git checkout main
sed -i 's/^500$/half/' numbers
check 'commit on main' commit main
check 'a merge with a conflict' git merge side
check status git status --short
check diff git diff
sed -i '/^<<<<<<<\|^=======\|^>>>>>>>/d' numbers
check 'the merge' commit merged
check log git log --graph --oneline --stat --all
check rebase git rebase --force-rebase HEAD~1
check stash sh -c 'echo more >> numbers; git stash; git stash pop'
check reset git reset --hard
check worktree sh -c 'git worktree add ../tree side && git worktree list | sed "s/ .*//"'
check bisect sh -c 'git bisect start HEAD HEAD~1 && git bisect run grep -q "^500$" numbers; git bisect reset'
check archive sh -c 'git archive HEAD | sha256sum'
check gc sh -c 'git gc --quiet --prune=now && git count-objects -v | grep "^in-pack"'
check fsck git fsck --strict
check 'clone of a file' sh -c 'git clone -q . ../two && cd ../two && git log --oneline | head -1'
check 'clone of a file URL' sh -c 'git clone -q --depth 1 file:///tmp/work/one ../three && git -C ../three log --oneline'
check 'push' sh -c 'git init -q --bare ../bare && git push -q ../bare main side && git -C ../bare branch'
check submodule sh -c 'cd ../two && git -c protocol.file.allow=always submodule add /tmp/work/one sub && git submodule status'

cd /tmp/work || exit
git daemon --export-all --base-path=/tmp/work --listen=127.0.0.1 --port=9418 --reuseaddr \
    --pid-file=daemon.pid --detach
i=0
until git ls-remote git://127.0.0.1/one > refs 2> /dev/null || [ $i -gt 100 ]; do
    sleep 0.1
    i=$((i + 1))
done
check 'what a server has' cat refs
check 'clone from a server' sh -c 'git clone -q git://127.0.0.1/one four && git -C four log --oneline | wc -l'
kill "$(cat daemon.pid)"
