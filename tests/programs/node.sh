check version sh -c 'node --version; npm --version'
export npm_config_offline=true npm_config_update_notifier=false npm_config_fund=false npm_config_audit=false
mkdir -p greeter app
cat > greeter/package.json <<'END'
{"name": "greeter", "version": "1.0.0", "bin": {"greet": "greet.js"}, "main": "greet.js",
 "scripts": {"test": "node greet.js", "postinstall": "node -e \"require('fs').writeFileSync('made', 'x')\""}}
END
printf '#!/usr/bin/env node\nconsole.log("hello");\n' > greeter/greet.js
echo '{"name": "app", "version": "1.0.0"}' > app/package.json
check 'npm pack' sh -c 'cd greeter && npm pack 2> /dev/null'
check 'npm install' sh -c 'cd app && npm install ../greeter/greeter-1.0.0.tgz 2>&1 | sed "s/ in .*//" && ls node_modules/greeter'
check 'npm test' sh -c 'cd greeter && npm test 2>&1'
check npx sh -c 'cd app && npx greet'
check 'npm install --global' sh -c 'npm install -g ./greeter/greeter-1.0.0.tgz 2>&1 | sed "s/ in .*//"; greet'
cat > server.js <<'END'
const http = require('http'), net = require('net'), fs = require('fs');
const { Worker, isMainThread, parentPort } = require('worker_threads');
const { spawn, fork, execSync } = require('child_process');
if (!isMainThread) { parentPort.postMessage(6 * 7); return; }
if (process.argv[2] === 'child') { process.on('message', m => { process.send(m + 1); process.disconnect(); }); return; }
(async () => {
  const server = http.createServer((q, r) => r.end('got ' + q.url)).listen(0, '127.0.0.1', async () => {
    const text = await new Promise(done => http.get({ port: server.address().port, host: '127.0.0.1', path: '/x' }, r => { let t = ''; r.on('data', d => t += d).on('end', () => done(t)); }));
    console.log(text); server.close();
    console.log(await new Promise(done => new Worker(__filename).on('message', done)));
    console.log(await new Promise(done => { const c = fork(__filename, ['child']); c.on('message', done); c.send(1); }));
    console.log(execSync('echo from a shell').toString().trim());
    const c = spawn('cat'); c.stdin.end('through cat'); for await (const d of c.stdout) console.log(d.toString());
    fs.writeFileSync('watched', '');
    console.log(await new Promise(done => { const w = fs.watch('watched', e => { w.close(); done(e); }); fs.appendFileSync('watched', 'x'); }));
    await new Promise(done => { const u = net.createServer(s => s.pipe(s)).listen('sock', () => { const k = net.connect('sock', () => k.end('echo')); k.on('data', d => console.log(d.toString())).on('close', () => u.close(done)); }); });
    console.log(require('crypto').createHash('sha256').update('x').digest('hex').slice(0, 8));
  });
})();
END
check 'a server, workers, children' node server.js
check 'its own test runner' sh -c 'printf "const t = require(\"node:test\"); t(\"one\", () => {}); t(\"two\", async () => {});" > t.test.js; node --test t.test.js 2>&1 | grep "^# [tpf]"'
check wasm node -e 'WebAssembly.instantiate(new Uint8Array([0,97,115,109,1,0,0,0])).then(m => console.log(Object.keys(m).join()))'
cat > cluster.js <<'END'
const cluster = require('cluster'), net = require('net');
if (cluster.isPrimary) {
  cluster.fork().on('exit', code => console.log('ended with', code));
  cluster.on('listening', (worker, address) => net.connect(address.port, '127.0.0.1').on('data', d => { console.log(d.toString()); worker.disconnect(); }));
} else net.createServer(s => s.end('of a worker')).listen(0, '127.0.0.1');
END
check 'a cluster' node cluster.js
