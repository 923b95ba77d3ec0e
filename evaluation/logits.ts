import { argmax } from '../compiler/runtime/generate.ts';

/** Sums over predictions; merge by adding. Logarithms are natural. */
export interface LogitSums {
  /** Predictions with a known next token. */
  count: number;
  /** Sum of -log p(next token), of the reference and of the other. */
  referenceLoss: number;
  loss: number;
  /** Sum of squares of the difference of the two losses, for the error of the ratio. */
  lossDifference2: number;
  /** Sum of KL(reference || other). */
  divergence: number;
  /** Predictions whose most likely token is the same. */
  agreement: number;
  /** Sums of squares for the signal to noise ratio of the logits. */
  signal: number;
  noise: number;
}

export function emptyLogitSums(): LogitSums {
  return { count: 0, referenceLoss: 0, loss: 0, lossDifference2: 0, divergence: 0, agreement: 0, signal: 0, noise: 0 };
}

/** What a report says of one engine's logits against the float model. */
export interface LogitReport {
  readonly predictions: number;
  readonly referencePerplexity: number;
  readonly perplexity: number;
  /** perplexity / referencePerplexity and its standard error over predictions. */
  readonly ratio: number;
  readonly ratioError: number;
  /** Mean KL(float || other) per token, nats. */
  readonly divergence: number;
  readonly topAgreement: number;
  /** Signal to quantization noise of the logits, dB. */
  readonly sqnr: number;
}

function logSumExp(logits: Float32Array): number {
  let max = Number.NEGATIVE_INFINITY;
  for (const value of logits) if (value > max) max = value;
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - max);
  return max + Math.log(sum);
}

/** Adds one prediction: both engines' logits after the same tokens, and the token that really came next. */
export function addLogits(sums: LogitSums, reference: Float32Array, other: Float32Array, next: number): void {
  const referenceNorm = logSumExp(reference);
  const norm = logSumExp(other);
  let divergence = 0;
  for (let i = 0; i < reference.length; i++) {
    const a = reference[i]!;
    const b = other[i]!;
    const logP = a - referenceNorm;
    const p = Math.exp(logP);
    // A token of probability 0 may have a logarithm of -Infinity: its share is 0, as the limit is.
    if (p !== 0) divergence += p * (logP - (b - norm));
    sums.signal += a * a;
    sums.noise += (a - b) * (a - b);
  }
  const referenceLoss = referenceNorm - reference[next]!;
  const loss = norm - other[next]!;
  sums.count++;
  sums.referenceLoss += referenceLoss;
  sums.loss += loss;
  sums.lossDifference2 += (loss - referenceLoss) ** 2;
  sums.divergence += divergence;
  if (argmax(reference) === argmax(other)) sums.agreement++;
}

/** Without any prediction the figures are NaN. */
export function reportLogits(sums: LogitSums): LogitReport {
  const n = sums.count;
  const meanDifference = (sums.loss - sums.referenceLoss) / n;
  const ratio = Math.exp(meanDifference);
  const variance = Math.max(0, sums.lossDifference2 / n - meanDifference * meanDifference);
  return {
    predictions: sums.count,
    referencePerplexity: Math.exp(sums.referenceLoss / n),
    perplexity: Math.exp(sums.loss / n),
    ratio,
    ratioError: ratio * Math.sqrt(variance / n),
    divergence: sums.divergence / n,
    topAgreement: sums.agreement / n,
    sqnr: sums.noise === 0 && n > 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(sums.signal / sums.noise),
  };
}
