/** A stretch of text and whether the reference has it in the same place. */
export interface Span {
  readonly text: string;
  readonly same: boolean;
}

/** Words beyond this are marked as different without a search: the search takes time with the product of the lengths. */
const LIMIT = 2000;

/**
 * Cuts a text into spans that the reference also has, in the same order, and spans that it has not; word by word, by the
 * longest common subsequence. The spans put together are the text.
 */
export function markDifferences(text: string, reference: string): Span[] {
  const words = cutWords(text);
  const others = cutWords(reference);
  const same = words.length > LIMIT || others.length > LIMIT ? commonStart(words, others) : commonWords(words, others);
  const spans: { text: string; same: boolean }[] = [];
  words.forEach((word, i) => {
    const last = spans.at(-1);
    if (last && last.same === same[i]) last.text += word;
    else spans.push({ text: word, same: same[i]! });
  });
  return spans;
}

/** How many leading words two texts share. */
export function sharedWords(text: string, reference: string): number {
  const same = commonStart(cutWords(text), cutWords(reference));
  const end = same.indexOf(false);
  return end < 0 ? same.length : end;
}

/** Words with the white space before them, and punctuation on its own. */
function cutWords(text: string): string[] {
  return text.match(/\s*(?:[\p{L}\p{N}\p{M}]+|[^\p{L}\p{N}\p{M}\s])|\s+$/gu) ?? [];
}

function commonStart(words: readonly string[], others: readonly string[]): boolean[] {
  let same = true;
  return words.map((word, i) => {
    same &&= word === others[i];
    return same;
  });
}

function commonWords(a: readonly string[], b: readonly string[]): boolean[] {
  const width = b.length + 1;
  // lengths[i * width + j]: of the longest common subsequence of a from i on and b from j on.
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i * width + j] =
        a[i] === b[j]
          ? lengths[(i + 1) * width + j + 1]! + 1
          : Math.max(lengths[(i + 1) * width + j]!, lengths[i * width + j + 1]!);
    }
  }
  const same = a.map(() => false);
  let i = 0;
  let j = 0;
  while (i < a.length && j < b.length) {
    if (a[i] === b[j]) {
      same[i] = true;
      i++;
      j++;
    } else if (lengths[(i + 1) * width + j]! >= lengths[i * width + j + 1]!) i++;
    else j++;
  }
  return same;
}
