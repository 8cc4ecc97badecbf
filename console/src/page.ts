// What every page is: an element, and what it does at each step and when it is left.
export interface Page { node: HTMLElement; step?(): void; theme?(): void; leave?(): void; }
