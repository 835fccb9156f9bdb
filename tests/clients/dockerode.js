// dockerode (npm) against `dhow serve`, that DOCKER_HOST names.
const assert = require('assert');
const { PassThrough } = require('stream');
const Docker = require('dockerode');

const d = new Docker({ socketPath: process.env.DOCKER_HOST.slice('unix://'.length) });

/** All that a stream says. */
const text = stream => new Promise((done, failed) => {
  let all = '';
  stream.on('data', piece => { all += piece; });
  stream.on('end', () => done(all)).on('close', () => done(all)).on('error', failed);
});

/** What the frames of a stream hold. */
const framed = stream => {
  const out = new PassThrough();
  d.modem.demuxStream(stream, out, out);
  stream.on('end', () => out.end());
  return text(out);
};

const refused = async (status, promise) => {
  const error = await promise.then(() => { throw new Error('it succeeded'); }, e => e);
  assert.strictEqual(error.statusCode, status, String(error));
  return error.json && error.json.message;
};

async function main() {
  assert.strictEqual(String(await d.ping()), 'OK');
  const out = new PassThrough();
  const said = text(out);
  const none = { HostConfig: { NetworkMode: 'none' } };
  const [end, once] = await d.run('busybox', ['sh', '-c', 'echo out; exit 3'], out, none);
  out.end();
  assert.strictEqual(end.StatusCode, 3);
  assert.match(await said, /^out/);
  await once.remove();

  const loop = 'trap "exit 4" TERM; while :; do echo x; sleep 0.1; done';
  const box = await d.createContainer({ Image: 'busybox', Cmd: ['sh', '-c', loop], name: 'box' });
  await box.start();
  let exec = await box.exec({ Cmd: ['cat'], AttachStdin: true, AttachStdout: true, AttachStderr: true });
  let stream = await exec.start({ hijack: true, stdin: true });
  let all = framed(stream);
  stream.write('typed\n');
  stream.end();
  assert.strictEqual(await all, 'typed\n');
  assert.strictEqual((await exec.inspect()).ExitCode, 0);
  exec = await box.exec({ Cmd: ['sh', '-c', 'echo tty; exit 6'], AttachStdout: true, Tty: true });
  assert.strictEqual(await text(await exec.start({})), 'tty\r\n');
  assert.strictEqual((await exec.inspect()).ExitCode, 6);
  for (const open of [box.logs({ follow: true, stdout: true, tail: 1 }), box.stats({ stream: true })]) {
    stream = await open;
    await new Promise(done => stream.once('data', done));
    stream.destroy();
  }

  stream = await d.getEvents({ filters: { container: ['box'] } });
  let events = '';
  const stopped = new Promise(done => stream.on('data', piece => {
    events += piece;
    if (events.includes('"Action":"stop"')) done();
  }));
  await box.stop({ t: 20 });
  assert.strictEqual((await box.wait()).StatusCode, 4);
  await stopped;
  stream.destroy();
  await refused(304, box.stop());
  assert.match(await refused(404, d.getContainer('absent').inspect()), /No such container: absent/);
  assert.ok((await text(await box.getArchive({ path: '/etc/passwd' }))).includes('root:x:0:0'));

  const cat = await d.createContainer({ Image: 'busybox', Cmd: ['cat'], OpenStdin: true, StdinOnce: true, ...none });
  stream = await cat.attach({ stream: true, stdin: true, stdout: true, stderr: true, hijack: true });
  all = framed(stream);
  await cat.start();
  stream.write('through\n');
  stream.end();
  assert.strictEqual(await all, 'through\n');
  assert.strictEqual((await cat.wait()).StatusCode, 0);
  await cat.remove();

  const volume = await d.createVolume({ Name: 'nodevol' });
  await volume.remove();
  const network = await d.createNetwork({ Name: 'nodenet' });
  await network.connect({ Container: box.id });
  await network.disconnect({ Container: box.id });
  await network.remove();
  await box.remove();
  assert.strictEqual((await d.listContainers({ all: true })).length, 0);
}

main().then(() => console.log('all of it'), e => { console.error(e); process.exit(1); });
