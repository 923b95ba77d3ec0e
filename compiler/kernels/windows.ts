import { rowTooLong } from './check.ts';
import type { Layout } from './kernels.ts';

/** The most bytes of tensors inside an engine at a time. */
const LARGEST_WINDOW = 16 << 20;

/** Elements start..end, which are the groups groupStart..groupEnd, each `group` long here. */
export interface GroupWindow {
  readonly start: number;
  readonly end: number;
  readonly group: number;
  readonly groupStart: number;
  readonly groupEnd: number;
}

/**
 * Cuts a matrix into windows of about `perWindow` values for kernels that treat each value by itself or fold a group in
 * any order: whole groups, or pieces of one group where it is longer. Window starts are multiples of `align` (1 or 2).
 */
export function* groupWindows(layout: Layout, perWindow: number, align: 1 | 2 = 1): Generator<GroupWindow> {
  const { block } = layout;
  const groups = (layout.rows * layout.columns) / block;
  const oddGroups = align === 2 && block % 2 === 1;
  if (block <= perWindow) {
    const fitting = Math.floor(perWindow / block);
    const step = oddGroups ? Math.max(2, fitting & ~1) : fitting;
    for (let g = 0; g < groups; g += step) {
      const last = Math.min(groups, g + step);
      yield { start: g * block, end: last * block, group: block, groupStart: g, groupEnd: last };
    }
    return;
  }
  if (oddGroups && groups > 1) throw rowTooLong(layout);
  const step = perWindow & ~31;
  for (let g = 0; g < groups; g++) {
    for (let at = 0; at < block; at += step) {
      const group = Math.min(step, block - at);
      const start = g * block + at;
      yield { start, end: start + group, group, groupStart: g, groupEnd: g + 1 };
    }
  }
}

export interface RowWindow {
  readonly rowStart: number;
  readonly rowEnd: number;
  readonly groupStart: number;
  readonly groupEnd: number;
}

/**
 * Cuts a matrix of f32 into windows of whole rows, `sharedBytes` of each window being taken by what all rows share and
 * as much again as the rows being left for results. Throws QT015 if one row does not fit the largest window.
 */
export function* rowWindows(layout: Layout, sharedBytes: number, windowBytes: number): Generator<RowWindow> {
  const { rows, columns, block } = layout;
  const bytesPerRow = columns * 8;
  if (bytesPerRow + sharedBytes > LARGEST_WINDOW) throw rowTooLong(layout);
  const step = Math.max(1, Math.floor((windowBytes - sharedBytes) / bytesPerRow));
  const groupsPerRow = columns / block;
  for (let rowStart = 0; rowStart < rows; rowStart += step) {
    const rowEnd = Math.min(rows, rowStart + step);
    yield { rowStart, rowEnd, groupStart: rowStart * groupsPerRow, groupEnd: rowEnd * groupsPerRow };
  }
}
