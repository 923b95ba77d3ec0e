import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { parseModule } from '../../compiler/ir/text.ts';
import { planArena } from '../../targets/plan-arena.ts';

const bytesOf = (value: { readonly dims: readonly number[] }): number => value.dims.reduce((a, b) => a * b, 4);

describe('planArena', () => {
  test('values that are not needed together share memory, inputs and outputs have none', () => {
    const module = parseModule(`npuir 1
graph @main {opset 21}
  in %x : f32[1,64]
  %a : f32[1,64] = Relu(%x)
  %b : f32[1,64] = Sigmoid(%a)
  %c : f32[1,64] = Tanh(%b)
  %y : f32[1,64] = Relu(%c)
  out %y
`);
    const plan = planArena(module.graph(), bytesOf);
    // a with b, then b with c: two values of 256 bytes at a time.
    expect(plan).toEqual({ bytes: 512, leastBytes: 512, alive: [256, 512, 512, 256] });
  });

  test('a reshaped value is the value that it was made from', () => {
    const module = parseModule(`npuir 1
graph @main {opset 21}
  in %x : f32[1,64]
  %shape : i64[2] = const [64, 1]
  %a : f32[1,64] = Relu(%x)
  %r : f32[64,1] = Reshape(%a, %shape)
  %y : f32[64,1] = Relu(%r)
  out %y
`);
    expect(planArena(module.graph(), bytesOf).bytes).toBe(256);
  });

  test('the arena holds what is alive at once, and no more than all values together', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 1, max: 40 }), fc.nat(), fc.nat()), { minLength: 1, maxLength: 25 }),
        (nodes) => {
          const names = ['x'];
          const lines = nodes.map(([width, first, second], i) => {
            const inputs = [names[first % names.length]!, names[second % names.length]!];
            names.push(`v${i}`);
            // The shapes say how large a value is: what the op means does not matter here.
            return `  %v${i} : f32[1,${width * 16}] = Custom(${inputs.map((name) => `%${name}`).join(', ')})`;
          });
          const module = parseModule(
            `npuir 1\ngraph @main {opset 21}\n  in %x : f32[1,16]\n${lines.join('\n')}\n  out %v${nodes.length - 1}\n`,
          );
          const { bytes, leastBytes, alive } = planArena(module.graph(), bytesOf);
          const inside = nodes.slice(0, -1).reduce((sum, [width]) => sum + width * 64, 0);
          expect(leastBytes).toBe(Math.max(...alive));
          expect(bytes).toBeGreaterThanOrEqual(leastBytes);
          expect(bytes).toBeLessThanOrEqual(inside);
        },
      ),
      { numRuns: 200 },
    );
  });
});
