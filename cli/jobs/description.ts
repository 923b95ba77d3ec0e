/** What `npuc inspect` says of a file: lines for people and the same as data. */
export interface Description {
  readonly kind: 'onnx' | 'tflite' | 'litertlm' | 'context-binary' | 'checkpoint' | 'compiled';
  readonly data: unknown;
  readonly lines: readonly string[];
}

/** How often each name is there, the most frequent first. */
export function countBy(names: Iterable<string>): [string, number][] {
  const counts = new Map<string, number>();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}
