import { intAttribute, stringAttribute } from '../compiler/ir/graph.ts';
import { any, constant, type Match, op } from '../compiler/match.ts';
import { rewritePass } from '../compiler/rewrite.ts';
import { knownShape } from '../compiler/value-facts.ts';

/**
 *     Reshape [n,b,b,c,h,w], Transpose [0,3,4,1,5,2], Reshape [n,c,h*b,w*b]   ->   DepthToSpace {blocksize b, mode DCR}
 *     Reshape [n,c,b,b,h,w], Transpose [0,1,4,2,5,3], Reshape [n,c,h*b,w*b]   ->   DepthToSpace {blocksize b, mode CRD}
 *
 * How exporters write out a pixel shuffle: runtimes have one kernel for it, and a transpose of six axes is slow or refused.
 */
export const fuseDepthToSpace = rewritePass({
  name: 'fuse-depth-to-space',
  about: 'Reshape, Transpose and Reshape of a pixel shuffle become DepthToSpace',
  rules: [
    {
      opset: 13,
      pattern: op('Reshape', [
        op('Transpose', [op('Reshape', [any('x'), constant('split')], { as: 'blocks' })], { as: 'turn' }),
        constant('shape'),
      ]),
      check: (match) => {
        const plan = planShuffle(match);
        return typeof plan === 'string' ? plan : true;
      },
      rewrite: (match, build) => {
        const { mode, blocksize } = planShuffle(match) as Shuffle;
        return build.emit('DepthToSpace', [match.value('x')], {
          attributes: { blocksize: intAttribute(blocksize), mode: stringAttribute(mode) },
        });
      },
    },
  ],
});

interface Shuffle {
  readonly mode: 'DCR' | 'CRD';
  readonly blocksize: number;
}

/** Where the axes of the first Reshape hold channels and blocks, and the Transpose that goes with it. */
const FORMS = [
  { mode: 'CRD', channels: 1, rows: 2, columns: 3, perm: '0,1,4,2,5,3' },
  { mode: 'DCR', channels: 3, rows: 1, columns: 2, perm: '0,3,4,1,5,2' },
] as const;

/** The block and its order, or why the three nodes are no pixel shuffle. */
function planShuffle(match: Match): Shuffle | string {
  const turn = match.node('turn');
  const [x, blocks, result] = [match.value('x'), match.node('blocks').output(), match.root.output()].map((value) =>
    knownShape(value),
  );
  if (x?.length !== 4 || blocks?.length !== 6 || result?.length !== 4)
    return `${turn.name} is no transpose of blocks of an image`;
  const form = FORMS.find(({ perm }) => perm === String(turn.ints('perm')));
  if (!form) return `${turn.name} has the permutation [${turn.ints('perm')}]`;
  const [channels, rows, columns] = [blocks[form.channels], blocks[form.rows], blocks[form.columns]];
  const kept = blocks[0] === x[0] && blocks[4] === x[2] && blocks[5] === x[3];
  if (!kept || rows !== columns || typeof rows !== 'number' || typeof channels !== 'number')
    return `${turn.name} does not spread square blocks of channels`;
  const wanted = [x[0], channels, (x[2] as number) * rows, (x[3] as number) * rows];
  return String(result) === String(wanted)
    ? { mode: form.mode, blocksize: rows }
    : `${match.root.name} does not join what ${turn.name} spreads`;
}
