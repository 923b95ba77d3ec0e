import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { bundleGenie } from '../../../cli/jobs/bundle-genie.ts';
import { runGenie } from '../../../compiler/runtime/genie.ts';
import { type Manifest, readManifest } from '../../../targets/manifest.ts';
import { checkGenieBundle } from '../../../targets/qnn/check-genie.ts';
import { checkGraphs } from '../../../targets/qnn/check-genie-graphs.ts';
import { type GenieManifest, keepSpaces, requireGenieTarget } from '../../../targets/qnn/genie-bundle.ts';
import { type GenieConfig, genieConfigSchema, makeGenieConfig } from '../../../targets/qnn/genie-config.ts';
import { type ContextInfo, readContextBinary } from '../../../targets/qnn/read-context.ts';
import { demo, runNpuc } from '../../cli/run-npuc.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { toolchain } from './toolchain-or-skip.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-genie-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const read = <T>(path: string): T => JSON.parse(readFileSync(path, 'utf8')) as T;

describe('a folder that Genie cannot drive', () => {
  const target = { contract: 'genie', protocol: { contract: 'genie' }, facts: { ropeType: 'default' }, graphs: [] };
  test.each<[string, object, RegExp]>([
    ['without a qnn target', {}, /no qnn target/],
    ['of another contract', { qnn: { ...target, contract: 'plain' } }, /contract plain/],
    ['of an older version', { qnn: { ...target, facts: {} } }, /rotary/],
    [
      'with as many past slots as new tokens',
      { qnn: { ...target, graphs: [{ name: 'prefill_16', tokens: 16, cache: 32 }] } },
      /prefill_16 has as many past slots as new tokens, 16/,
    ],
    ['with a scaling that was never run', { qnn: { ...target, facts: { ropeType: 'linear' } } }, /linear/],
  ])('%s', (_, targets, message) => {
    const manifest = { targets } as unknown as Manifest;
    expect(() => requireGenieTarget('build', manifest)).toThrow(
      expect.objectContaining({ code: 'QN020', message: expect.stringMatching(message) }),
    );
  });
});

describe('the configuration', () => {
  const rope = { theta: 500000, factor: 8, lowFrequencyFactor: 1, highFrequencyFactor: 4, originalPositions: 8192 };
  const make = (type: 'default' | 'llama3', generation = {}) =>
    makeGenieConfig({
      cache: 512,
      vocabSize: 128,
      headDim: 64,
      rope: { ...rope, type },
      startId: undefined,
      eosIds: [2, 3],
      generation,
      binaries: ['a.bin'],
      spillFillBytes: 4096,
    });
  test('plain tables by base and width, scaled ones by their own section, never both', () => {
    const plain = genieConfigSchema.parse(make('default')).dialog.engine;
    expect(plain.backend.QnnHtp).toMatchObject({ 'kv-dim': 64, 'pos-id-dim': 32, 'rope-theta': 500000 });
    expect(plain.model['positional-encoding']).toBeUndefined();
    const scaled = genieConfigSchema.parse(make('llama3')).dialog.engine;
    expect(scaled.backend.QnnHtp).not.toHaveProperty('rope-theta');
    expect(scaled.backend.QnnHtp).not.toHaveProperty('pos-id-dim');
    expect(scaled.model['positional-encoding']).toMatchObject({ 'rope-dim': 32, 'rope-scaling': { factor: 8 } });
  });
  test('tokens, spill and sampler', () => {
    const { context, sampler, engine } = make('default', { do_sample: true, temperature: 0.6, top_p: 0.9 }).dialog;
    expect(context).toMatchObject({ 'bos-token': -1, 'eos-token': [2, 3], size: 512, 'n-vocab': 128 });
    expect(sampler).toMatchObject({ temp: 0.6, 'top-p': 0.9, 'top-k': 50, greedy: false });
    expect(engine.backend.QnnHtp['spill-fill-bufsize']).toBe(4096);
    expect(make('default').dialog.sampler.greedy).toBe(true);
  });
  test('only the step that strips spaces leaves the tokenizer', () => {
    const [fuse, strip] = [{ type: 'Fuse' }, { type: 'Strip', content: ' ' }];
    expect(keepSpaces({ decoder: { type: 'Sequence', decoders: [fuse, strip] } })).toEqual({
      decoder: { type: 'Sequence', decoders: [fuse] },
    });
    expect(keepSpaces({ decoder: strip })).toEqual({ decoder: null });
    expect(keepSpaces({ decoder: { type: 'ByteLevel' } })).toEqual({ decoder: { type: 'ByteLevel' } });
  });
});

async function compile(source: string, name: string, ...flags: readonly string[]): Promise<string> {
  const out = join(work, name);
  const sizes = ['--tokens', '32', '--cache', '256', '--calibration-windows', '4', '--eval-tokens', '96'];
  const scheme = ['--target', 'qnn', '--scheme', 'w8a16', '--kv', '8'];
  const outcome = await runNpuc(['compile', source, ...scheme, ...sizes, '--out', out, '--quiet', ...flags]);
  expect(outcome.stderr).toBe('');
  expect(outcome.code).toBe(0);
  return out;
}

const greedy = { prompt: 'Once upon a time', tokens: 40 };

describe.skipIf(!toolchain)('the demo model in Genie', () => {
  let folder: string;
  let bundle: string;
  beforeAll(async () => {
    folder = await compile(demo, 'demo');
    bundle = join(work, 'demo-bundle');
  }, 600_000);

  test('writes what npuc generate writes, 40 tokens', async () => {
    const made = await bundleGenie({
      folder,
      out: bundle,
      unshared: true,
      force: false,
      verify: greedy,
      note: () => {},
    });
    expect(made.verified!.ids).toHaveLength(40);
    expect(made.verified!.text.length).toBeGreaterThan(80);
    expect(made.warnings).toEqual([]);
    const { files } = read<GenieManifest>(join(bundle, 'manifest.json'));
    for (const { path } of files) expect(existsSync(join(bundle, path)), path).toBe(true);
    expect(readFileSync(join(bundle, 'README.md'), 'utf8')).toContain('libQnnHtpV79Skel.so');
    // A bundle is not a compiled folder.
    expect(() => readManifest(bundle)).toThrow(expect.objectContaining({ code: 'TG110' }));
  }, 600_000);

  test('what Genie takes silently is refused, every mismatch at once', async () => {
    const broken = join(work, 'broken');
    cpSync(bundle, broken, { recursive: true });
    const path = join(broken, 'genie_config.json');
    const config = read<GenieConfig>(path);
    const { context, engine } = config.dialog;
    Object.assign(context, { 'n-vocab': 2047, size: 128, 'bos-token': -1 });
    Object.assign(engine.backend.QnnHtp, { 'kv-dim': 128, 'rope-theta': 500000 });
    writeFileSync(path, JSON.stringify(config));
    const refusal = checkGenieBundle(broken, toolchain!);
    await expect(refusal).rejects.toMatchObject({ code: 'QN021', message: expect.stringContaining('5 mismatches') });
    for (const key of ['n-vocab is 2047', 'size is 128', 'bos-token is -1', 'kv-dim is 128', 'rope-theta 500000'])
      await expect(refusal).rejects.toThrow(key);
    writeFileSync(path, JSON.stringify({ dialog: { ...config.dialog, flavour: 'mint' } }));
    await expect(checkGenieBundle(broken, toolchain!)).rejects.toThrow(/flavour/);
    // Genie's own refusal of the same comes coded, out of the child.
    const asked = { config: readFileSync(path, 'utf8'), queries: [{ prompt: 'a', maxTokens: 1 }] };
    await expect(runGenie(toolchain!, broken, asked)).rejects.toMatchObject({
      code: 'QN022',
      message: expect.stringContaining('not of the schema'),
    });
  }, 60_000);

  test('graphs that Genie would feed wrongly are refused', async () => {
    const { protocol, graphs: bundled } = read<GenieManifest>(join(bundle, 'manifest.json'));
    const name = 'decode_ctx_qnn.bin';
    const info = await readContextBinary(toolchain!, join(bundle, name));
    const one = [{ tokens: 1, cache: 256, parts: ['decode'] }];
    const check = (change: (tensor: ContextInfo['graphs'][0]['inputs'][0]) => object): string => {
      const graphs = info.graphs.map((graph) => ({
        ...graph,
        inputs: graph.inputs.map((tensor) => ({ ...tensor, ...change(tensor) })),
      }));
      return checkGraphs(new Map([[name, { ...info, graphs }]]), protocol, one).problems.join('\n');
    };
    const only = (wanted: string, change: object) => (tensor: { readonly name: string }) =>
      tensor.name === wanted ? change : {};
    expect(check(() => ({}))).toBe('');
    expect(check(only('past_key_0_in', { scale: 1 }))).toMatch(/past_key_0_out is .* goes into past_key_0_in/);
    expect(check(only('past_key_0_in', { zeroPoint: 127 }))).toMatch(/empty cache/);
    expect(check(only('attention_mask', { zeroPoint: 0 }))).toMatch(/Genie writes 65535/);
    expect(check(only('attention_mask', { scale: 1e-5 }))).toMatch(/too near to 0/);
    expect(check(only('position_ids_cos', { name: 'cos' }))).toMatch(/knows no input cos[\s\S]*cos is missing/);
    const found = new Map([[name, info]]);
    expect(checkGraphs(found, protocol, bundled).problems).toEqual(['no binary has the graph prefill_32']);
    expect(checkGraphs(found, protocol, []).problems).toEqual([
      'decode_ctx_qnn.bin has the graph decode, which the bundle does not list',
    ]);
    const smaller = [{ ...one[0]!, cache: 128 }];
    expect(checkGraphs(found, protocol, smaller).problems.join()).toContain('attention_mask is [1,1,1,256]');
  }, 60_000);

  test('a shared bundle is checked too, and not verified on this machine', async () => {
    const options = { folder, out: join(work, 'shared'), unshared: false, force: false, note: () => {} };
    await expect(bundleGenie({ ...options, verify: greedy })).rejects.toMatchObject({ code: 'CL001' });
    expect(existsSync(options.out)).toBe(false);
    const { manifest } = await bundleGenie(options);
    expect(manifest.shared).toBe(true);
    expect(manifest.files.filter(({ path }) => path.endsWith('.bin'))).toHaveLength(1);
  }, 120_000);
});

test.skipIf(!toolchain || !hasMaterial)(
  'stories260k in Genie writes what npuc generate writes, 40 tokens with spaces',
  async () => {
    const folder = await compile(materialPath('stories260k', 'hf'), 'stories');
    const out = join(work, 'stories-bundle');
    const made = await bundleGenie({ folder, out, unshared: true, force: false, verify: greedy, note: () => {} });
    expect(made.verified!.ids).toHaveLength(40);
    expect(made.verified!.text).toContain('there was a little girl');
  },
  600_000,
);

describe.skipIf(!toolchain)('a model in parts in Genie', () => {
  const parts = (found: Awaited<ReturnType<typeof bundleGenie>>): readonly string[] =>
    found.manifest.graphs.find(({ tokens }) => tokens === 1)!.parts;
  const source = hasMaterial ? materialPath('stories260k', 'hf') : demo;
  const bundle = (folder: string, unshared: boolean) => {
    const options = { folder, out: `${folder}-genie-${unshared}`, unshared, force: false, note: () => {} };
    return bundleGenie(unshared ? { ...options, verify: greedy } : options);
  };

  test.each([
    [
      ['--split', '2'],
      ['p1of2_ar1_cl256', 'p2of2_ar1_cl256'],
    ],
    [
      ['--split', '3', '--split-embedding', '--split-head'],
      ['p1of3_ar1_cl256', 'p2of3_ar1_cl256', 'p3of3_ar1_cl256'],
    ],
  ])(
    '%j writes what npuc generate writes, 40 tokens',
    async (flags, names) => {
      const folder = await compile(source, `parts-${names.length}`, '--evaluate', 'none', ...flags);
      const made = await bundle(folder, true);
      expect(made.verified!.ids).toHaveLength(40);
      expect(parts(made)).toEqual(names);
      // What is shipped: a shared binary for every part, in their order.
      const shared = await bundle(folder, false);
      const config = read<GenieConfig>(join(`${folder}-genie-false`, 'genie_config.json'));
      const binaries = config.dialog.engine.model.binary['ctx-bins'];
      expect(binaries).toHaveLength(names.length);
      expect(binaries.map((name) => name.slice(0, 3))).toEqual(names.map((name) => name.slice(0, 3)));
      expect(parts(shared)).toEqual(names);
    },
    600_000,
  );

  test('parts in another order, or handed on otherwise than they are taken, are refused', async () => {
    const folder = join(work, 'parts-2-genie-true');
    const { protocol, graphs } = read<GenieManifest>(join(folder, 'manifest.json'));
    const decode = graphs.filter(({ tokens }) => tokens === 1);
    const names = decode[0]!.parts.map((name) => `${name}_ctx_qnn.bin`);
    const infos = await Promise.all(names.map((name) => readContextBinary(toolchain!, join(folder, name))));
    const problems = (change: (info: ContextInfo, index: number) => ContextInfo, listed = decode): string =>
      checkGraphs(new Map(infos.map((info, i) => [names[i]!, change(info, i)])), protocol, listed).problems.join('\n');
    expect(problems((info) => info)).toBe('');
    const turned = decode.map((graph) => ({ ...graph, parts: [...graph.parts].reverse() }));
    expect(problems((info) => info, turned)).toMatch(/Genie would run the parts as p1of2.*, p2of2/);
    const scaled = problems((info, index) =>
      index === 0
        ? info
        : {
            ...info,
            graphs: info.graphs.map((graph) => ({
              ...graph,
              inputs: graph.inputs.map((tensor) =>
                tensor.name.endsWith('.mlp_residual') ? { ...tensor, scale: 1 } : tensor,
              ),
            })),
          },
    );
    expect(scaled).toMatch(/mlp_residual leaves p1of2_ar1_cl256 as .* and enters p2of2_ar1_cl256 as .* scale 1,/);
  }, 60_000);
});

test('an embedding apart that serves several caches is refused: Genie does not load it', () => {
  const graph = (cache: number) => ({
    tokens: 1,
    cache,
    file: 'qnn/a',
    parts: [
      { graph: 'a', file: 'qnn/a' },
      { graph: `b${cache}`, file: `qnn/b${cache}` },
    ],
  });
  const qnn = {
    contract: 'genie',
    protocol: { contract: 'genie' },
    facts: { ropeType: 'default' },
    graphs: [graph(128), graph(256)],
  };
  expect(() => requireGenieTarget('build', { targets: { qnn } } as unknown as Manifest)).toThrow(
    expect.objectContaining({ code: 'QN020', message: expect.stringContaining('serves 2 cache sizes') }),
  );
});
