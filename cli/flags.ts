import type { Options } from 'yargs';

/** What a number may be; without a limit, anything finite. */
export interface Limits {
  readonly whole?: boolean;
  readonly least?: number;
  readonly above?: number;
  readonly most?: number;
}

/** A flag that takes a number: the parser refuses one that is none, or out of the limits, and names the flag. */
export function numberFlag(name: string, describe: string, limits: Limits, more: Options = {}): Options {
  return {
    ...more,
    // Not 'number': there the parser adds 1 to the value before when a flag is repeated with the value 1.
    type: 'string',
    requiresArg: true,
    describe,
    coerce: (given: string | number | (string | number)[]) => {
      const last = lastOf(given);
      if (last === undefined) return undefined;
      const value = String(last).trim() === '' ? Number.NaN : Number(last);
      if (fits(value, limits)) return value;
      throw new Error(`--${name} takes ${describeLimits(limits)}`);
    },
  };
}

/** A flag that takes a whole number of at least 1. */
export function countFlag(name: string, describe: string): Options {
  return numberFlag(name, describe, { whole: true, least: 1 });
}

/** A flag whose repetitions add up. */
export function listFlag(describe: string, more: Options = {}): Options {
  return { ...more, type: 'string', requiresArg: true, describe };
}

/** A flag that takes a text. */
export function textFlag(describe: string, more: Options = {}): Options {
  return { ...more, type: 'string', requiresArg: true, describe, coerce: lastOf<string> };
}

/** A flag given twice arrives as an array: the last one counts, as in most tools. */
function lastOf<T>(given: T | readonly T[]): T | undefined {
  return Array.isArray(given) ? given.at(-1) : (given as T);
}

function fits(value: number, { whole, least, above, most }: Limits): boolean {
  if (!Number.isFinite(value) || (whole && !Number.isSafeInteger(value))) return false;
  return !(value < (least ?? value) || value > (most ?? value) || (above !== undefined && value <= above));
}

function describeLimits({ whole, least, above, most }: Limits): string {
  const bounds = [
    ...(least === undefined ? [] : [`of at least ${least}`]),
    ...(above === undefined ? [] : [`above ${above}`]),
    ...(most === undefined ? [] : [`of at most ${most}`]),
  ];
  return [whole ? 'a whole number' : 'a number', bounds.join(' and ')].filter(Boolean).join(' ');
}
