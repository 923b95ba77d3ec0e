import type { Execution } from '../targets/target.ts';
import type { FileRole } from './report.ts';

/** Groups thousands: `2,048`. */
export function formatCount(count: number): string {
  return String(count).replace(/\B(?=(\d{3})+(?!\d))/g, ',');
}

/** Decimal units, as file managers and Qualcomm's and Google's tools count: `3.54 MB`. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? value : toDigits(value, 3)} ${units[unit]}`;
}

/** `28.6 dB`; an exact copy is `exact`, numbers that are none `NaN`. */
export function formatDecibels(value: number | undefined): string {
  if (value === undefined) return '-';
  if (Number.isNaN(value)) return 'NaN';
  if (value === Number.POSITIVE_INFINITY) return 'exact';
  return value === Number.NEGATIVE_INFINITY ? '-inf dB' : `${minus(value.toFixed(1))} dB`;
}

/** A perplexity or a ratio of two: four decimals near one, fewer as it grows, `1.9e+5` when it says nothing more. */
export function formatRatio(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value >= 1e4) return value.toExponential(1);
  return value.toFixed(value < 10 ? 4 : value < 100 ? 2 : 0);
}

/** The standard error of a ratio, to the digits of the ratio. */
export function formatRatioError(error: number, value: number): string {
  if (!Number.isFinite(error) || !Number.isFinite(value)) return String(error);
  if (value >= 1e4) return error.toExponential(1);
  return error.toFixed(value < 10 ? 4 : value < 100 ? 2 : 0);
}

export function formatPerplexity(value: number): string {
  if (!Number.isFinite(value)) return 'not measured';
  return value >= 1e6 ? value.toExponential(2) : value.toFixed(value < 1000 ? 2 : 0);
}

/** KL divergence in nats per token. */
export function formatDivergence(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  return minus(value.toFixed(value < 0.1 ? 4 : value < 10 ? 3 : 1));
}

/** A share as a percentage: `92.9 %`. */
export function formatShare(share: number): string {
  return Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : String(share);
}

/** Noise over signal, in percent of power: `1.2 %`, `0.003 %`, `340 %`. */
export function formatNoise(share: number): string {
  if (!Number.isFinite(share)) return String(share);
  const value = 100 * share;
  if (Math.abs(value) < 0.001) return '0 %';
  return `${value < 0 ? '-' : ''}${toDigits(Math.abs(value), Math.abs(value) < 0.1 ? 4 : 2)} %`;
}

/** `4 s`, `0.35 s`, `3 min 20 s`. */
export function formatSeconds(seconds: number): string {
  if (seconds < 10) return `${toDigits(seconds, 2)} s`;
  if (seconds < 120) return `${seconds.toFixed(0)} s`;
  const whole = Number(seconds.toFixed(0));
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Seconds of one run of a model; those of small models take milliseconds. */
export function formatRun(seconds: number): string {
  return seconds < 0.1 ? `${(1000 * seconds).toFixed(1)} ms` : formatSeconds(seconds);
}

/** An error in steps of an encoding. */
export function formatSteps(steps: number | undefined): string {
  if (steps === undefined || !Number.isFinite(steps)) return '-';
  return steps < 10 ? steps.toFixed(1) : formatCount(Number(steps.toFixed(0)));
}

/** A small real number in three digits: `0.0367`, `1.2e-6`. */
export function formatReal(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return '0';
  return Math.abs(value) < 1e-4 || Math.abs(value) >= 1e5
    ? value.toExponential(1)
    : String(Number(value.toPrecision(3)));
}

/** What was done to show that an artifact is right, in the fewest words and in full. */
export const EXECUTIONS: Readonly<Record<Execution, { readonly short: string; readonly long: string }>> = {
  executed: { short: 'executed', long: 'The emitted file itself was run here.' },
  'executed-as-twin': {
    short: 'executed as twin',
    long: 'Its unshared twin, compiled from the same bytes, was run here; the shared binary was read back and agrees with it.',
  },
  'read-back-only': {
    short: 'read back only',
    long: 'The file was read back and checked, but never run: no figure proves it.',
  },
};

/** What a file is for. */
export const ROLES: Readonly<Record<FileRole, string>> = {
  binary: 'context binary',
  model: 'graphs and weights',
  weights: 'weights',
  graph: 'graphs',
  embedding: 'embedding table',
  encodings: 'encodings',
  source: 'QDQ sources, not shipped',
};

function toDigits(value: number, digits: number): string {
  const whole = Math.floor(Math.abs(value)).toString().length;
  return value.toFixed(Math.max(0, digits - whole));
}

/** Minus zero is zero. */
function minus(text: string): string {
  return /^-0(\.0*)?$/.test(text) ? text.slice(1) : text;
}
