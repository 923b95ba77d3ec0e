import type { Recipe } from './recipe.ts';

export const EFFORTS = ['fast', 'default', 'best'] as const;
/** How much work quantization may be: docs/accuracy.md has what each takes and gives. */
export type Effort = (typeof EFFORTS)[number];

/** Calibration windows of each effort, where nobody asked for another number. */
export const EFFORT_WINDOWS: Readonly<Record<Effort, number>> = { fast: 8, default: 32, best: 64 };

/** What was asked for by name: an effort leaves it alone. */
export type AskedFor = Partial<Record<'rotation' | 'outliers' | 'rounding', unknown>>;

/**
 * The recipe of an effort. `fast` rounds to nearest and leaves the weights where they are: statistics are collected once, and
 * scales are still searched against them. `best` starts from the default and measures (tryRecipes).
 */
export function effortRecipe(recipe: Recipe, effort: Effort, asked: AskedFor = {}): Recipe {
  if (effort !== 'fast') return recipe;
  return {
    ...recipe,
    migration: recipe.migration === 'search' ? 0 : recipe.migration,
    ...(asked.rounding === undefined ? { rounding: 'nearest' } : {}),
    ...(asked.rotation === undefined ? { rotation: 'none' } : {}),
    ...(asked.outliers === undefined ? { outliers: 'none' } : {}),
  };
}

/**
 * The recipes that `best` measures against each other, the default first: with and without a rotation where the recipe leaves
 * that open, with and without scale moved out of activations, or less and more of it.
 */
export function candidateRecipes(recipe: Recipe): Recipe[] {
  const rotations = recipe.rotation === 'auto' ? (['auto', 'none', 'hadamard'] as const) : [recipe.rotation];
  const migrations =
    recipe.migration === 0
      ? [0]
      : recipe.migration === 'search'
        ? (['search', 0] as const)
        : [recipe.migration, 0.3, 0.7];
  return migrations.flatMap((migration) => rotations.map((rotation) => ({ ...recipe, rotation, migration })));
}
