import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { htpFormat } from '../../../calibration/recipe.ts';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { compileContext } from '../../../targets/qnn/compile-context.ts';
import { findSoc } from '../../../targets/socs.ts';
import { lpbqMatmul, noise, writeModel } from './tiny-onnx.ts';
import { toolchain } from './toolchain-or-skip.ts';

const SOC = findSoc('SM8750');

/**
 * The vendor's kernel for LPBQ blocks of 64 divides the blocks over six threads by rounding up: where five shares are more
 * than there are, the last thread gets less than none and reads on until it crashes. It does so in graphs loaded from a
 * compiled binary, not where the simulator has compiled the graph itself. `brokenCounts` of the HTP format avoids them;
 * when a toolchain takes them, this test says so.
 */
describe.skipIf(!toolchain)('LPBQ blocks of 64 in a compiled binary', () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'npuc-test-'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  const broken = htpFormat.brokenCounts[64]!;

  async function runCompiled(count: number, block: number): Promise<boolean> {
    const inputs = count * block;
    const path = writeModel(join(folder, 'model.onnx'), lpbqMatmul(1, inputs, 64, block));
    const outputFolder = mkdtempSync(join(folder, 'out-'));
    const { files } = await compileContext(toolchain!, [{ name: 'model', path }], {
      soc: SOC,
      share: false,
      outputFolder,
    });
    const host = await NativeHost.start(toolchain!);
    try {
      const feeds = { x: { dtype: 'f32', shape: [1, 1, inputs], data: noise(inputs, 3) } } as const;
      const direct = await host.openSession(path, { provider: 'qnn', soc: SOC.number });
      const expected = await direct.run(feeds);
      const session = await host.openSession(files[0]!.onnx, { provider: 'qnn' });
      expect(await session.run(feeds)).toEqual(expected);
      return true;
    } catch (error) {
      expect(error).toMatchObject({ code: 'RT202', message: expect.stringContaining('SIGSEGV') });
      return false;
    } finally {
      await host.kill();
    }
  }

  test.each([6, 8, 9, 10, 14, 15])('%i of them', async (count) => {
    expect(await runCompiled(count, 64)).toBe(!broken.has(count));
  });

  test('what is planned instead runs', async () => {
    expect(await runCompiled(16, 32)).toBe(true);
    expect(await runCompiled(18, 32)).toBe(true);
  });

  test('the rule is the arithmetic of six threads', () => {
    const rule = (count: number) => count > 6 && Math.ceil(count / 6) * 5 > count;
    expect([...broken]).toEqual(Array.from({ length: 500 }, (_, i) => i + 1).filter(rule));
  });
});
