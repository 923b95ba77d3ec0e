import { describe, expect, test } from 'vitest';
import { candidateRecipes, effortRecipe } from '../../calibration/effort.ts';
import { makeRecipe } from '../../calibration/recipe.ts';

describe('efforts', () => {
  test('fast rounds to nearest and moves nothing, but for what was asked for', () => {
    const recipe = makeRecipe('w4a16');
    expect(effortRecipe(recipe, 'fast')).toMatchObject({ rounding: 'nearest', rotation: 'none', migration: 0 });
    const asked = { rounding: 'gptq', rotation: 'hadamard' } as const;
    expect(effortRecipe(makeRecipe('w4a16', asked), 'fast', asked)).toMatchObject({ ...asked, migration: 0 });
    // At w8a8 moving scale costs nothing and is what makes 8 bits usable.
    expect(effortRecipe(makeRecipe('w8a8'), 'fast').migration).toBe(0.5);
    for (const effort of ['default', 'best'] as const) expect(effortRecipe(recipe, effort)).toEqual(recipe);
  });

  test.each([
    ['w4a16', 6],
    ['w8a16', 3],
    ['w8a8', 3],
    ['fp16', 1],
  ])('best tries the default of %s first, and %i recipes in all', (scheme, count) => {
    const recipe = makeRecipe(scheme);
    const candidates = candidateRecipes(recipe);
    expect(candidates.length).toBe(count);
    expect(candidates[0]).toEqual(recipe);
    expect(new Set(candidates.map((each) => JSON.stringify(each))).size).toBe(count);
  });

  test('what was asked for by name is not tried otherwise', () => {
    const candidates = candidateRecipes(
      makeRecipe('w4a16', { rotation: 'hadamard', overrides: [{ match: 'x', activation: 8 }] }),
    );
    expect(new Set(candidates.map(({ rotation }) => rotation))).toEqual(new Set(['hadamard']));
    for (const { overrides } of candidates) expect(overrides).toEqual([{ match: 'x', activation: 8 }]);
  });
});
