import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { HubServer } from '../compiler/import/hub-server.ts';
import { demo, type Outcome, quick, runNpuc } from './run-npuc.ts';

const COMMIT = 'a'.repeat(40);
const server = new HubServer();
let work: string;

beforeAll(async () => {
  work = mkdtempSync(join(tmpdir(), 'npuc-hub-'));
  await server.start();
  const files = Object.fromEntries(
    readdirSync(demo)
      .filter((name) => /\.(json|safetensors)$/.test(name))
      .map((name) => [name, readFileSync(join(demo, name))]),
  );
  server.repositories.set('someone/demo', { revisions: { main: COMMIT }, files, lfs: ['model.safetensors'] });
});
afterAll(async () => {
  await server.stop();
  rmSync(work, { recursive: true, force: true });
});

const compile = (source: string, out: string, env: Record<string, string> = {}): Promise<Outcome> =>
  runNpuc(['compile', source, '--target', 'onnx', '--out', join(work, out), ...quick], {
    env: { HF_ENDPOINT: server.url, NPUC_CACHE: join(work, 'cache'), ...env },
  });

test('compile takes a model of the hub, keeps it, and works offline afterwards', { timeout: 120_000 }, async () => {
  const first = await compile(`hf:someone/demo@${COMMIT}`, 'first');
  expect(first.code, first.stderr).toBe(0);
  const asked = server.requests.length;
  expect(asked).toBeGreaterThan(3);
  const offline = await compile('hf:someone/demo', 'offline', {
    HF_HUB_OFFLINE: '1',
    HF_ENDPOINT: 'http://127.0.0.1:1',
  });
  expect(offline.stderr).toMatch(/^HB\d{3} /m);
  const online = await compile('hf:someone/demo', 'online');
  expect(online.code, online.stderr).toBe(0);
  const again = await compile('hf:someone/demo', 'again', { HF_HUB_OFFLINE: '1' });
  expect(again.code, again.stderr).toBe(0);
  // The name differs from a local folder's; the bytes of the artifacts do not depend on where the model came from.
  const manifests = ['first', 'again'].map((name) => readFileSync(join(work, name, 'manifest.json'), 'utf8'));
  expect(manifests[1]).toBe(manifests[0]);
});

test('a model that is not there is one coded error', async () => {
  const outcome = await compile('hf:someone/nothing', 'nothing');
  expect(outcome.code).toBe(2);
  expect(outcome.stderr).toMatch(/^HB\d{3} .*someone\/nothing/m);
  expect(existsSync(join(work, 'nothing'))).toBe(false);
});
