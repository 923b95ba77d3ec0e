import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { NativeHost } from '../../compiler/runtime/ort-native.ts';
import type { Manifest, ModelManifest } from '../../targets/manifest.ts';
import type { ContextInfo } from '../../targets/qnn/read-context.ts';
import { noise, type TinyModel, writeModel } from '../targets/qnn/tiny-onnx.ts';
import { toolchain } from '../targets/qnn/toolchain-or-skip.ts';
import { demo, runNpuc } from './run-npuc.ts';

describe.skipIf(!toolchain)('what a compile for qnn leaves', () => {
  let work: string;
  beforeAll(() => {
    work = mkdtempSync(join(tmpdir(), 'npuc-outputs-'));
  });
  afterAll(() => rmSync(work, { recursive: true, force: true }));
  const inspect = async <T>(path: string): Promise<{ text: string; data: T }> => {
    const [text, json] = [await runNpuc(['inspect', path]), await runNpuc(['inspect', path, '--json'])];
    expect([text.stderr, text.code, json.code]).toEqual(['', 0, 0]);
    return { text: text.stdout, data: JSON.parse(json.stdout) as T };
  };

  test('an ONNX model: loads as it is from any folder, has a DLC, and says what it holds', async () => {
    const mlp: TinyModel = {
      inputs: [{ name: 'x', dtype: 'f32', shape: [1, 32] }],
      outputs: [{ name: 'y', dtype: 'f32', shape: [1, 8] }],
      nodes: [
        { op: 'MatMul', name: 'first', inputs: ['x', 'w1'], outputs: ['h'] },
        { op: 'Relu', name: 'relu', inputs: ['h'], outputs: ['r'] },
        { op: 'MatMul', name: 'second', inputs: ['r', 'w2'], outputs: ['y'] },
      ],
      weights: [
        { name: 'w1', dtype: 'f32', shape: [32, 16], data: noise(512, 1) },
        { name: 'w2', dtype: 'f32', shape: [16, 8], data: noise(128, 2) },
      ],
    };
    const source = writeModel(join(work, 'mlp.onnx'), mlp);
    const made = join(work, 'made');
    const flags = ['--target', 'qnn', '--scheme', 'w8a16', '--dlc', '--toolchain', `qnn@${toolchain!.version}`];
    const { code } = await runNpuc(['compile', source, ...flags, '--out', made, '--quiet']);
    expect(code).toBe(0);
    const folder = join(work, 'moved to another name');
    renameSync(made, folder);

    const { text, data } = await inspect<ModelManifest & { contexts: Record<string, ContextInfo> }>(folder);
    expect(data.toolchain).toEqual(toolchain!.versions);
    expect(data.files.map(({ path }) => path)).toContain('qnn/dlc/model.dlc');
    expect(text).toMatch(/made by npuc .*qairt 2\./);
    expect(text).toMatch(
      /qnn\/model_ctx_qnn\.bin .*\n {6}SM8750 \(soc 69\) v79 .*\n {6}graph model {2}1 in, 1 out {2}own weights/,
    );
    const [graph] = data.contexts['qnn/model_ctx_qnn.bin']!.graphs;
    const ports = data.targets.qnn!;
    expect(graph!.name).toBe('model');
    for (const [tensor, port] of [
      [graph!.inputs[0]!, ports.inputs[0]!],
      [graph!.outputs[0]!, ports.outputs[0]!],
    ] as const) {
      expect(tensor).toEqual({ ...port, scale: Math.fround(port.scale!) });
    }
    expect((await inspect<ContextInfo>(join(folder, 'qnn/model_ctx_qnn.bin'))).data).toMatchObject({
      kind: 'context-binary',
      soc: 69,
      graphs: [{ name: 'model' }],
    });

    // The plugin of the toolchain opens the EPContext model by its relative names, and computes what the QDQ model does.
    const host = await NativeHost.start(toolchain!);
    const integers = Uint16Array.from(noise(32, 3), (value) => 32768 + value * 30000);
    const feeds = { x: { dtype: 'u16', shape: [1, 32], data: integers } } as const;
    const context = await host.openSession(join(folder, 'qnn/model_ctx.onnx'), { provider: 'qnn' });
    const cpu = await host.openSession(join(folder, 'qnn/qdq/model.onnx'), { provider: 'cpu' });
    const [a, b] = [await context.run(feeds), await cpu.run(feeds)].map(({ y }) => y!.data as Uint16Array);
    expect(Math.max(...a!.map((value, i) => Math.abs(value - b![i]!)))).toBeLessThan(16);
    expect(new Set(b).size).toBeGreaterThan(4);
    await host.close();
  }, 60_000);

  test('a decoder that a newer toolchain made is refused, one of an older runs with a warning', async () => {
    const out = join(work, 'decoder');
    const sizes = ['--tokens', '4', '--cache', '16', '--calibration-windows', '1', '--evaluate', 'none', '--quiet'];
    const compiled = await runNpuc(['compile', demo, '--target', 'qnn', '--scheme', 'w8a16', ...sizes, '--out', out]);
    expect([compiled.code, compiled.stderr]).toEqual([0, '']);
    const { data } = await inspect<Manifest & { contexts: Record<string, ContextInfo> }>(out);
    expect(Object.values(data.contexts).flatMap(({ graphs }) => graphs.map(({ name }) => name).sort())).toEqual(
      data.targets.qnn!.graphs.map(({ name }) => name).sort(),
    );
    const path = join(out, 'manifest.json');
    const manifest = readFileSync(path, 'utf8');
    const generate = async (qairt: string) => {
      writeFileSync(path, manifest.replace(`"qairt": "${toolchain!.versions.qairt}"`, `"qairt": "${qairt}"`));
      return await runNpuc(['generate', out, '--target', 'qnn', '--prompt', 'It', '--max-tokens', '2']);
    };
    const newer = await generate('9.0.0');
    expect(newer.code).toBe(2);
    expect(newer.stderr).toMatch(/^QN015 .*compiled with QAIRT 9\.0\.0/);
    const bundle = ['bundle', 'genie', out, '--out', join(work, 'bundle')];
    expect((await runNpuc(bundle)).stderr).toMatch(/QN015/);
    expect(existsSync(join(work, 'bundle'))).toBe(false);
    const older = await generate('2.0.0');
    expect(older.code).toBe(0);
    expect(older.stderr).toMatch(/WARNING: .*compiled with QAIRT 2\.0\.0/);
    expect((await generate(toolchain!.versions.qairt!)).stderr).not.toMatch(/WARNING/);
  }, 120_000);
});
