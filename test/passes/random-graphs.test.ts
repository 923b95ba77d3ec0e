import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { printModule } from '../../compiler/ir/text.ts';
import { findProblems } from '../../compiler/ir/verify.ts';
import { type Pass, runPasses } from '../../compiler/pass.ts';
import { fuse, PASSES, simplify } from '../../passes/pipelines.ts';
import { randomGraph } from './random-graph.ts';

/** Runs passes on random graphs: the runner checks the IR, the contract and the values after each. */
function holds(passes: readonly Pass[], numRuns: number, untilStable = false): void {
  fc.assert(
    fc.property(fc.nat(), (seed) => {
      const module = randomGraph(seed);
      const { remarks } = runPasses(module, passes, { verifyValues: { seed }, untilStable });
      expect(remarks.filter(({ text }) => text.includes('not compared'))).toEqual([]);
    }),
    { numRuns },
  );
}

describe('random graphs', () => {
  it('are valid', () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        expect(findProblems(randomGraph(seed))).toEqual([]);
      }),
      { numRuns: 100 },
    );
  });

  it.each([...PASSES.values()].map((pass) => [pass.name, pass] as const))('keep their values under %s', (_, pass) => {
    holds([pass], 40);
  });

  it('keep their values under simplify and fuse', () => {
    holds([...simplify, ...fuse], 60, true);
  });

  it('do not change when they are simplified a second time', () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const module = randomGraph(seed);
        runPasses(module, [...simplify, ...fuse], { untilStable: true });
        const once = printModule(module, { data: 'all' });
        expect(runPasses(module, [...simplify, ...fuse], { untilStable: true }).changed).toEqual([]);
        expect(printModule(module, { data: 'all' })).toBe(once);
      }),
      { numRuns: 60 },
    );
  });
});
