import { cpSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { bundleGenie } from '../../../cli/jobs/bundle-genie.ts';
import { compareTwin } from '../../../evaluation/compare-chunk.ts';
import { readManifest } from '../../../targets/manifest.ts';
import { checkGenieBundle } from '../../../targets/qnn/check-genie.ts';
import { checkGraphs } from '../../../targets/qnn/check-genie-graphs.ts';
import type { GenieManifest } from '../../../targets/qnn/genie-bundle.ts';
import type { GenieConfig } from '../../../targets/qnn/genie-config.ts';
import { qnnTarget } from '../../../targets/qnn/qnn-target.ts';
import { readContextBinary } from '../../../targets/qnn/read-context.ts';
import { demo, runNpuc } from '../../cli/run-npuc.ts';
import { toolchain } from './toolchain-or-skip.ts';

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-genie-table-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

const read = <T>(path: string): T => JSON.parse(readFileSync(path, 'utf8')) as T;

/** Compiles the demo model for caches of 20 and 40 tokens, without running it. */
async function compile(embedding: string): Promise<string> {
  const out = join(work, embedding);
  const sizes = ['--tokens', '8', '--cache', '20,40', '--calibration-windows', '4', '--evaluate', 'none'];
  const scheme = ['--target', 'qnn', '--scheme', 'w8a16', '--kv', '8', '--embedding', embedding];
  const outcome = await runNpuc(['compile', demo, ...scheme, ...sizes, '--out', out, '--quiet']);
  expect(outcome.stderr).toBe('');
  expect(outcome.code).toBe(0);
  return out;
}

describe.skipIf(!toolchain)('two caches and an embedding table in Genie', () => {
  test.each([
    ['lut-f16', { datatype: 'ufixed16', file: 'embedding.raw' }, 2],
    ['lut-u8', { datatype: 'ufixed8', quantization: { scale: 'embedding-scales.raw' } }, 1],
  ])(
    '%s writes what npuc generate writes, beyond the smaller cache',
    async (embedding, table, bytes) => {
      const folder = await compile(embedding);
      const out = `${folder}-genie`;
      const verify = { prompt: 'Once upon a time', tokens: 24 };
      const made = await bundleGenie({ folder, out, unshared: true, force: false, verify, note: () => {} });
      expect(made.verified!.ids).toHaveLength(24);
      expect(made.manifest.graphs.map(({ tokens, cache }) => [tokens, cache])).toEqual([
        [8, 20],
        [1, 20],
        [8, 40],
        [1, 40],
      ]);
      expect(made.manifest.table).toMatchObject({ ...table, rows: 2048, width: 256 });
      expect(statSync(join(out, 'embedding.raw')).size).toBe(2048 * 256 * bytes);
      const { context, engine } = read<GenieConfig>(join(out, 'genie_config.json')).dialog;
      expect(context.size).toBe(40);
      expect(engine.model.binary['ctx-bins']).toHaveLength(4);
    },
    300_000,
  );

  test('the simulator and ONNX Runtime are given the same rows', async () => {
    const folder = join(work, 'lut-u8');
    const target = readManifest(folder).targets.qnn!;
    expect(target.embedding).toEqual({ file: 'qnn/embedding.bin', form: 'i8-per-row' });
    const reference = await qnnTarget.openReference!(folder, target);
    const session = await qnnTarget.open(folder, target, { toolchain: toolchain! });
    try {
      const { sqnr } = await compareTwin(reference, session, [0, 403, 407, 261, 378, 78, 733, 12]);
      expect(sqnr).toBeGreaterThan(40);
    } finally {
      await reference.close();
      await session.close();
    }
  }, 60_000);

  test('a shared bundle has the table and one binary', async () => {
    const folder = join(work, 'lut-u8');
    const options = { folder, out: join(work, 'shared'), unshared: false, force: false, note: () => {} };
    const { manifest } = await bundleGenie(options);
    const binaries = manifest.files.filter(({ path }) => path.endsWith('.bin'));
    expect(binaries).toHaveLength(1);
    expect(manifest.files.map(({ path }) => path)).toContain('embedding-offsets.raw');
  }, 60_000);

  test('a table that Genie would take silently is refused', async () => {
    const broken = join(work, 'broken');
    cpSync(join(work, 'lut-f16-genie'), broken, { recursive: true });
    const path = join(broken, 'genie_config.json');
    const config = read<GenieConfig>(path);
    const check = async (change: (dialog: Record<string, unknown>) => void): Promise<void> => {
      const copy = structuredClone(config);
      change(copy.dialog as unknown as Record<string, unknown>);
      writeFileSync(path, JSON.stringify(copy));
      await checkGenieBundle(broken, toolchain!);
    };
    const { embedding } = config.dialog;
    const { scale, offset } = embedding!['quant-param']!;
    await check(() => {});
    // With the sign of a zero point instead of an offset every token is another one, and Genie says nothing.
    const turned = { scale, offset: -Number(offset) };
    await expect(check((dialog) => Object.assign(dialog, { embedding: { ...embedding, 'quant-param': turned } })))
      .rejects //
      .toMatchObject({ code: 'QN021', message: expect.stringContaining('the graphs take rows') });
    await expect(check((dialog) => delete dialog.embedding)).rejects.toThrow(/embedding is missing/);
    await expect(
      check((dialog) => Object.assign(dialog, { embedding: { ...embedding, datatype: 'native' } })),
    ).rejects.toThrow(/embedding\.datatype/);
    truncateSync(join(broken, 'embedding.raw'), 1000);
    await expect(check(() => {})).rejects.toThrow(/not the embedding table that was bundled/);
  }, 60_000);

  test('rows of another shape or encoding than the table are refused', async () => {
    const bundle = join(work, 'lut-f16-genie');
    const { protocol, table, graphs } = read<GenieManifest>(join(bundle, 'manifest.json'));
    const name = 'decode_c20_ctx_qnn.bin';
    const contexts = new Map([[name, await readContextBinary(toolchain!, join(bundle, name))]]);
    const one = graphs.filter(({ parts }) => parts[0] === 'decode_c20');
    const problems = (change: object): string =>
      checkGraphs(contexts, protocol, one, { ...table!, ...change }).problems.join('\n');
    expect(problems({})).toBe('');
    expect(problems({ width: 128 })).toContain('inputs_embeds is [1,1,256], Genie wants [1,1,128]');
    expect(problems({ datatype: 'float32' })).toContain('inputs_embeds is u16, the embedding table is float32');
    expect(problems({ quantization: { ...table!.quantization, offset: 0 } })).toMatch(/table is u16 with .* zero 0/);
    expect(checkGraphs(contexts, protocol, one).problems.join()).toContain('Genie feeds i32');
    const halved = [{ ...one[0]!, tokens: 10 }];
    expect(checkGraphs(contexts, protocol, halved, table).problems.join()).toContain('takes them for the new tokens');
  }, 60_000);
});
