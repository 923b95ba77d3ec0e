const LAYER = /\b(layers?|blocks?|h)([./_])\d+/g;

/** A remark, and how many others say the same of other layers. */
export interface GroupedRemark {
  readonly text: string;
  readonly others: number;
}

/** Remarks that differ only in the number of a layer become one: the first, in its place. */
export function groupRemarks(remarks: readonly string[]): GroupedRemark[] {
  const groups = new Map<string, { text: string; others: number }>();
  for (const text of remarks) {
    const key = text.replace(LAYER, '$1$2#');
    const group = groups.get(key);
    if (group) group.others++;
    else groups.set(key, { text, others: 0 });
  }
  return [...groups.values()];
}

/** A grouped remark in one line. */
export function describeRemark({ text, others }: GroupedRemark): string {
  if (others === 0) return text;
  return `${text} (and ${others} other ${others === 1 ? 'layer' : 'layers'})`;
}
