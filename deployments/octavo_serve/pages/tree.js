// A conversation as a tree: an edit or another answer stands beside what it replaces, and both are kept.
//
//     user ── assistant ── user ── assistant        the path that is shown: from the root, the chosen child of each
//          └─ assistant         └─ assistant
//
// A node is plain data: {id, parent, children, chosen, role, content, ...}; `chosen` is a place in `children`.

export class Tree {
  constructor(nodes = [{ id: 0, parent: null, children: [], chosen: 0 }]) {
    this.nodes = nodes;
  }

  /** The nodes that are shown, in order. */
  path() {
    const found = [];
    for (let node = this.next(this.nodes[0]); node; node = this.next(node)) found.push(node);
    return found;
  }

  /** The chosen child of a node. */
  next(node) {
    return this.nodes[node.children[node.chosen]];
  }

  /** The last node of the path; the root of an empty conversation. */
  last() {
    return this.path().at(-1) ?? this.nodes[0];
  }

  parent(node) {
    return this.nodes[node.parent];
  }

  /** Add a node below `parent`, and choose it. */
  add(parent, message) {
    const node = { ...message, id: this.nodes.length, parent: parent.id, children: [], chosen: 0 };
    this.nodes.push(node);
    parent.chosen = parent.children.push(node.id) - 1;
    return node;
  }

  /** Place and number of a node among those that say the same turn otherwise. */
  place(node) {
    const { children } = this.parent(node);
    return [children.indexOf(node.id), children.length];
  }

  /** Choose the version so many places further on. */
  turn(node, by) {
    const parent = this.parent(node);
    parent.chosen = Math.min(Math.max(parent.children.indexOf(node.id) + by, 0), parent.children.length - 1);
  }

  /** A few words of how it begins. */
  title() {
    return this.nodes[1]?.content?.trim().split("\n")[0].slice(0, 60) ?? "";
  }
}
