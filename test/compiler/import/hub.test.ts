import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { openCheckpoint } from '../../../compiler/import/checkpoint.ts';
import { fetchHubModel, parseHubReference } from '../../../compiler/import/hub.ts';
import { type Fault, HubServer } from './hub-server.ts';
import { encodeSafetensors, entry } from './write-safetensors.ts';

const server = new HubServer();
const MAIN = 'a'.repeat(40);
const OLD = 'b'.repeat(40);
const QUICK = { retryMs: 1 };
let cache: string;

beforeAll(() => server.start());
afterAll(() => server.stop());
beforeEach(() => {
  cache = mkdtempSync(join(tmpdir(), 'npuc-hub-'));
  vi.stubEnv('NPUC_CACHE', cache);
  vi.stubEnv('HF_ENDPOINT', `${server.url}/`);
  vi.stubEnv('HF_TOKEN', '');
  vi.stubEnv('HF_HUB_OFFLINE', '');
  server.requests.length = 0;
  server.faults.clear();
  server.repositories.clear();
  server.apiStatus = undefined;
  server.apiBody = undefined;
  server.repositories.set('org/model', {
    revisions: { main: MAIN, old: OLD },
    files: files(),
    lfs: ['model.safetensors'],
  });
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(cache, { recursive: true, force: true });
});

const text = (value: unknown) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));
const weights = (name: string, count = 64) =>
  encodeSafetensors(
    { [name]: entry('F32', [count], 0, count * 4) },
    new Uint8Array(new Float32Array(count).fill(2).buffer),
  );

function files(): Record<string, Uint8Array> {
  return {
    '.gitattributes': text('x'),
    'README.md': text('read me'),
    'config.json': text({ architectures: ['LlamaForCausalLM'], vocab_size: 8 }),
    'generation_config.json': text({ eos_token_id: [1, 2] }),
    'model.safetensors': weights('w'),
    'pytorch_model.bin': text('pickled'),
    'onnx/model.onnx': text('not wanted'),
  };
}

const coded = (code: string, part = '') =>
  expect.objectContaining({ name: 'NpucError', code, message: expect.stringContaining(part) });
const fails = async (work: Promise<unknown>) => {
  try {
    await work;
  } catch (error) {
    return error;
  }
  throw new Error('it did not fail');
};
const fault = (file: string, ...faults: Fault[]) => server.faults.set(file, faults);
const fetched = () => server.requests.filter(({ path }) => path.includes('/resolve/') || path.startsWith('/lfs/'));

describe('names', () => {
  test.each([
    ['hf:org/name', { repo: 'org/name', revision: 'main', file: undefined }],
    ['hf:gpt2', { repo: 'gpt2', revision: 'main', file: undefined }],
    ['hf:Org-1/Name_2.5@v1.0', { repo: 'Org-1/Name_2.5', revision: 'v1.0', file: undefined }],
    ['hf:org/name@refs/pr/3', { repo: 'org/name', revision: 'refs/pr/3', file: undefined }],
    ['hf:org/name/a-Q4_0.gguf@main', { repo: 'org/name', revision: 'main', file: 'a-Q4_0.gguf' }],
  ])('%s', (source, expected) => expect(parseHubReference(source)).toEqual(expected));

  test.each([
    'hf:',
    'hf:/name',
    'hf:org/',
    'hf:a/b/c',
    'hf:org/../name',
    'hf:org/na me',
    'hf:org/name@',
    'hf:-/x',
    'hf:a/..',
  ])('%s is refused', (source) => expect(() => parseHubReference(source)).toThrow(coded('HB001')));
});

describe('downloading', () => {
  test('only the files that are needed, verified, in one folder', async () => {
    const steps: [number, number, string][] = [];
    const folder = await fetchHubModel('hf:org/model', { progress: (...step) => steps.push(step) });
    expect(folder).toBe(join(cache, 'hub/org--model/snapshots', MAIN, 'model'));
    expect(readdirSync(folder).sort()).toEqual(['config.json', 'generation_config.json', 'model.safetensors']);
    for (const name of readdirSync(folder)) {
      expect(readFileSync(join(folder, name)).equals(Buffer.from(files()[name]))).toBe(true);
    }
    const total = readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
    expect(steps.at(-1)).toEqual([total, total, 'model.safetensors']);
    steps.reduce((before, [done]) => {
      expect(done).toBeGreaterThanOrEqual(before);
      return done;
    }, 0);
    expect(readdirSync(join(cache, 'hub/org--model/incoming'))).toEqual([]);
  });

  test('large files come from another server by a redirect', async () => {
    await fetchHubModel('hf:org/model');
    expect(server.requests.filter(({ server }) => server === 'cdn').map(({ path }) => path)).toEqual([
      '/lfs/org/model/model.safetensors',
    ]);
  });

  test('opened as a checkpoint', async () => {
    const checkpoint = await openCheckpoint('hf:org/model');
    expect(checkpoint.name).toBe('org/model');
    expect(checkpoint.generationConfig).toEqual({ eos_token_id: [1, 2] });
    expect(checkpoint.tokenizer).toBeUndefined();
    expect(checkpoint.tensors.get('w')!.toFloats()[63]).toBe(2);
    checkpoint.close();
  });

  test('shards that the index names, and no others', async () => {
    server.repositories.set('org/sharded', {
      revisions: { main: MAIN },
      files: {
        'config.json': text({}),
        'model.safetensors.index.json': text({ weight_map: { a: 'model-1.safetensors', b: 'model-2.safetensors' } }),
        'model-1.safetensors': weights('a'),
        'model-2.safetensors': weights('b'),
        'model-fp8.safetensors': weights('c'),
      },
      lfs: ['model-1.safetensors', 'model-2.safetensors', 'model-fp8.safetensors'],
    });
    const checkpoint = await openCheckpoint('hf:org/sharded');
    expect([...checkpoint.tensors.keys()]).toEqual(['a', 'b']);
    expect(fetched().some(({ path }) => path.includes('fp8'))).toBe(false);
    checkpoint.close();
  });

  test('a GGUF by its name', async () => {
    server.repositories.set('org/ggufs', {
      revisions: { main: MAIN },
      files: { 'a-Q4_0.gguf': text('GGUF four'), 'a-Q8_0.gguf': text('GGUF eight') },
    });
    const path = await fetchHubModel('hf:org/ggufs/a-Q8_0.gguf');
    expect(readFileSync(path, 'utf8')).toBe('GGUF eight');
    expect(fetched().length).toBe(1);
    expect(await fails(fetchHubModel('hf:org/ggufs'))).toEqual(coded('IM110', 'GGUF'));
    expect(await fails(fetchHubModel('hf:org/ggufs/b.gguf'))).toMatchObject({
      code: 'HB002',
      hint: 'it has a-Q4_0.gguf, a-Q8_0.gguf',
    });
  });
});

describe('the cache', () => {
  test('a second run asks for the commit only, a pinned commit asks for nothing', async () => {
    const first = await fetchHubModel('hf:org/model');
    server.requests.length = 0;
    expect(await fetchHubModel('hf:org/model')).toBe(first);
    expect(server.requests.map(({ path }) => path)).toEqual(['/api/models/org/model/revision/main']);
    server.requests.length = 0;
    expect(await fetchHubModel(`hf:org/model@${MAIN}`)).toBe(first);
    expect(server.requests).toEqual([]);
  });

  test('a branch that moves, beside the old commit', async () => {
    const before = await fetchHubModel('hf:org/model');
    const repository = server.repositories.get('org/model')!;
    repository.revisions.main = 'c'.repeat(40);
    repository.files['config.json'] = text({ vocab_size: 9 });
    const after = await fetchHubModel('hf:org/model');
    expect(after).not.toBe(before);
    expect(readFileSync(join(after, 'config.json'), 'utf8')).toBe('{"vocab_size":9}');
    expect(readFileSync(join(before, 'config.json'), 'utf8')).toContain('8');
    expect(await fetchHubModel('hf:org/model@old')).toBe(join(cache, 'hub/org--model/snapshots', OLD, 'model'));
  });

  test('offline', async () => {
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    expect(await fails(fetchHubModel('hf:org/model'))).toEqual(coded('HB006'));
    vi.stubEnv('HF_HUB_OFFLINE', '0');
    const folder = await fetchHubModel('hf:org/model');
    vi.stubEnv('HF_HUB_OFFLINE', 'ON');
    server.requests.length = 0;
    expect(await fetchHubModel('hf:org/model')).toBe(folder);
    expect(await fails(fetchHubModel('hf:org/model@old'))).toEqual(coded('HB006'));
    expect(server.requests).toEqual([]);
  });

  test('two processes: the second is told, a dead one is forgotten', async () => {
    const lock = join(cache, 'hub/org--model/incoming', `${MAIN}-model.lock`);
    mkdirSync(join(lock, '..'), { recursive: true });
    writeFileSync(lock, String(process.ppid));
    expect(await fails(fetchHubModel('hf:org/model'))).toEqual(coded('HB007', String(process.ppid)));
    // Above any pid that Linux gives.
    writeFileSync(lock, '4194999');
    await fetchHubModel('hf:org/model');
    expect(existsSync(lock)).toBe(false);
  });

  test('a cache that cannot be written', async () => {
    writeFileSync(join(cache, 'hub'), 'a file where a folder should be');
    expect(await fails(fetchHubModel('hf:org/model'))).toEqual(coded('IO002'));
  });
});

describe('tokens', () => {
  test('the hub gets the token, the other server does not', async () => {
    const repository = server.repositories.get('org/model')!;
    repository.token = 'hf_secret';
    expect(await fails(fetchHubModel('hf:org/model'))).toMatchObject({
      code: 'HB003',
      hint: expect.stringContaining('HF_TOKEN'),
    });
    vi.stubEnv('HF_TOKEN', 'hf_secret');
    server.requests.length = 0;
    await fetchHubModel('hf:org/model');
    for (const { server: which, authorization } of server.requests) {
      expect(authorization).toBe(which === 'hub' ? 'Bearer hf_secret' : undefined);
    }
    expect(server.requests.some(({ server }) => server === 'cdn')).toBe(true);
  });

  test('a gated model', async () => {
    server.repositories.get('org/model')!.gated = true;
    vi.stubEnv('HF_TOKEN', 'hf_other');
    const error = await fails(fetchHubModel('hf:org/model'));
    expect(error).toEqual(coded('HB003', 'accepted its terms'));
    expect(JSON.stringify(error) + (error as Error).message).not.toContain('hf_other');
  });
});

describe('what goes wrong on the way', () => {
  const name = 'model.safetensors';
  const size = files()[name].length;

  test.each<[string, Fault[], string[]]>([
    ['a broken connection', [{ kind: 'cut', after: 100, how: 'connection' }], ['', 'bytes=100-']],
    ['a body that ends early', [{ kind: 'cut', after: 50, how: 'chunked' }], ['', 'bytes=50-']],
    [
      'two breaks and a busy server',
      [
        { kind: 'cut', after: 100, how: 'connection' },
        { kind: 'status', status: 503 },
        { kind: 'cut', after: 100, how: 'connection' },
        { kind: 'status', status: 429 },
      ],
      ['', 'bytes=100-', 'bytes=100-', 'bytes=200-', 'bytes=200-'],
    ],
    [
      'a range that the server refuses',
      [
        { kind: 'cut', after: 100, how: 'connection' },
        { kind: 'status', status: 416 },
      ],
      ['', 'bytes=100-', ''],
    ],
    [
      'a server that gives no ranges',
      [{ kind: 'cut', after: 100, how: 'connection' }, { kind: 'no-range' }],
      ['', 'bytes=100-'],
    ],
  ])('%s: the download goes on', async (_, faults, ranges) => {
    fault(name, ...faults);
    const folder = await fetchHubModel('hf:org/model', QUICK);
    expect(readFileSync(join(folder, name)).equals(Buffer.from(files()[name]))).toBe(true);
    const asked = server.requests.filter(({ server }) => server === 'cdn').map(({ range }) => range ?? '');
    expect(asked).toEqual(ranges);
  });

  test('a silent server', async () => {
    fault(name, { kind: 'stall', after: 10 });
    await fetchHubModel('hf:org/model', { retryMs: 1, idleMs: 200 });
    expect(server.requests.filter(({ server }) => server === 'cdn').map(({ range }) => range)).toEqual([
      undefined,
      'bytes=10-',
    ]);
  });

  test('a process that stopped: the next one goes on where it was', async () => {
    const controller = new AbortController();
    fault(name, { kind: 'stall', after: 120 });
    const progress = (done: number, _: number, file: string) => {
      if (file === name && done > 120) controller.abort(new Error('interrupted'));
    };
    expect(await fails(fetchHubModel('hf:org/model', { progress, signal: controller.signal }))).toMatchObject({
      message: 'interrupted',
    });
    expect(existsSync(join(cache, 'hub/org--model/snapshots'))).toBe(false);
    server.requests.length = 0;
    const folder = await fetchHubModel('hf:org/model');
    expect(fetched().map(({ path, range }) => [path, range])).toEqual([
      [`/org/model/resolve/${MAIN}/${name}`, 'bytes=120-'],
      [`/lfs/org/model/${name}`, 'bytes=120-'],
    ]);
    expect(statSync(join(folder, name)).size).toBe(size);
  });

  test('bytes that are not the ones of the digest are removed', async () => {
    fault(name, { kind: 'corrupt' });
    expect(await fails(fetchHubModel('hf:org/model', QUICK))).toEqual(coded('HB005', 'sha256'));
    fault('config.json', { kind: 'corrupt' });
    rmSync(join(cache, 'hub'), { recursive: true });
    expect(await fails(fetchHubModel('hf:org/model', QUICK))).toEqual(coded('HB005', 'sha1'));
    expect(existsSync(join(cache, 'hub/org--model/snapshots'))).toBe(false);
    await fetchHubModel('hf:org/model', QUICK);
  });

  test('a beginning of another file is found out by the digest', async () => {
    const incoming = join(cache, 'hub/org--model/incoming', `${MAIN}-model`);
    mkdirSync(incoming, { recursive: true });
    writeFileSync(join(incoming, `${name}.part`), Buffer.alloc(100));
    expect(await fails(fetchHubModel('hf:org/model', QUICK))).toEqual(coded('HB005'));
    writeFileSync(join(incoming, `${name}.part`), Buffer.alloc(size + 100));
    await fetchHubModel('hf:org/model', QUICK);
  });

  test('more bytes than there should be', async () => {
    fault(name, ...Array.from({ length: 4 }, (): Fault => ({ kind: 'longer' })));
    expect(await fails(fetchHubModel('hf:org/model', QUICK))).toEqual(coded('HB004', 'more than'));
  });

  test('a server that stays broken', async () => {
    fault(name, ...Array.from({ length: 4 }, (): Fault => ({ kind: 'status', status: 500 })));
    expect(await fails(fetchHubModel('hf:org/model', QUICK))).toEqual(coded('HB004', '500'));
    expect(server.requests.filter(({ server }) => server === 'cdn').length).toBe(4);
  });

  test('a file that is listed but not there', async () => {
    fault(name, { kind: 'status', status: 404, code: 'EntryNotFound' });
    expect(await fails(fetchHubModel('hf:org/model', QUICK))).toEqual(coded('HB002', `no file ${name}`));
  });

  test('no such model, no such revision', async () => {
    expect(await fails(fetchHubModel('hf:org/none'))).toEqual(coded('HB003', 'no such model'));
    vi.stubEnv('HF_TOKEN', 'hf_any');
    expect(await fails(fetchHubModel('hf:org/none'))).toEqual(coded('HB002', 'no model org/none'));
    expect(await fails(fetchHubModel('hf:org/model@v9'))).toEqual(coded('HB002', 'v9'));
  });

  test('a hub that answers nonsense', async () => {
    server.apiStatus = 500;
    expect(await fails(fetchHubModel('hf:org/model'))).toEqual(coded('HB004', '500'));
    server.apiStatus = undefined;
    for (const body of ['<html>', '{"sha":"../../etc"}', '{}', 'null', '[]']) {
      server.apiBody = body;
      expect(await fails(fetchHubModel('hf:org/model')), body).toEqual(coded('HB004'));
    }
  });

  test('no hub at all', async () => {
    vi.stubEnv('HF_ENDPOINT', 'http://127.0.0.1:9');
    expect(await fails(fetchHubModel('hf:org/model'))).toEqual(coded('HB004'));
    vi.stubEnv('HF_ENDPOINT', 'not a url');
    expect(await fails(fetchHubModel('hf:org/model'))).toEqual(coded('HB004', 'HF_ENDPOINT'));
  });

  test('an interrupted question', async () => {
    const signal = AbortSignal.abort(new Error('interrupted'));
    expect(await fails(fetchHubModel('hf:org/model', { signal }))).toMatchObject({ message: 'interrupted' });
  });
});

describe('repositories without what is needed', () => {
  const cases: [string, Record<string, Uint8Array>, string, string][] = [
    ['only pickled weights', { 'config.json': text({}), 'pytorch_model.bin': text('x') }, 'IM111', 'pytorch_model.bin'],
    ['no weights', { 'config.json': text({}) }, 'IM110', 'no weights'],
    ['no config.json', { 'model.safetensors': weights('w') }, 'IM110', 'config.json'],
    [
      'several weights',
      { 'config.json': text({}), 'a.safetensors': text('x'), 'b.safetensors': text('y') },
      'IM110',
      'told apart',
    ],
    [
      'an index with a shard that is not there',
      { 'config.json': text({}), 'model.safetensors.index.json': text({ weight_map: { a: 'no.safetensors' } }) },
      'IM103',
      'no.safetensors',
    ],
    [
      'an index that leads out of the folder',
      { 'config.json': text({}), 'model.safetensors.index.json': text({ weight_map: { a: '../x.safetensors' } }) },
      'IM103',
      '../x.safetensors',
    ],
  ];
  test.each(cases)('%s', async (_, files, code, part) => {
    server.repositories.set('org/odd', { revisions: { main: MAIN }, files });
    expect(await fails(fetchHubModel('hf:org/odd', QUICK))).toEqual(coded(code, part));
    expect(existsSync(join(cache, 'hub/org--odd/snapshots'))).toBe(false);
  });
});
